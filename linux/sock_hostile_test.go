package linux

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// set makes f read as if value had been written to the n bytes at a.
func set(t *testing.T, k *kernel.Kernel, f *flipped, a mem.Virt, n int, value uint64) {
	t.Helper()
	v := view(t, k, mem.Options{})
	var was [8]byte
	binary.LittleEndian.PutUint64(was[:], value)
	for i := range n {
		p, err := v.Space().Translate(a + mem.Virt(i))
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if _, err := v.Snapshot().Read(p, b[:]); err != nil {
			t.Fatal(err)
		}
		f.flips[p.Page()] = append(f.flips[p.Page()], flip{int(p - p.Page()), b[0] ^ was[i]})
	}
}

// TestSocketsHostile lists sockets whose tables and chains an intruder has bent.
func TestSocketsHostile(t *testing.T) {
	for _, version := range recordedKernels {
		src := openRecorded(t, version)
		f := &flipped{Source: src}
		k := attachTo(t, f)
		r, err := newSockReader(view(t, k, mem.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		init, err := k.Symbol("init_net")
		if err != nil {
			t.Fatal(err)
		}
		all, err := Sockets(view(t, k, mem.Options{}), SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		first := func(protocol string) Socket {
			for _, s := range all {
				if s.Protocol == protocol && len(s.Processes) > 0 {
					return s
				}
			}
			t.Fatalf("%s: no %s socket recorded", version, protocol)
			return Socket{}
		}
		at := func(obj mem.Virt, f btf.Field) mem.Virt { return obj + mem.Virt(f.Offset) }
		pointer := func(a mem.Virt) (p mem.Virt) {
			if err := view(t, k, mem.Options{}).Do(func(w *kernel.Walk) { p = w.Pointer(a) }); err != nil {
				t.Fatal(err)
			}
			return p
		}
		udp, tcp, unix := first("udp").Addr, first("tcp").Addr, first("unix").Addr
		hashInfo := pointer(at(init, r.net.HashInfo))
		for _, c := range []struct {
			name  string
			at    mem.Virt
			bytes int
			value uint64
			want  string
		}{
			{"a chain that leads back into itself", at(udp, r.l.Node), 8, uint64(at(udp, r.l.Node)), "leads back into itself"},
			{"a chain that leads nowhere", at(udp, r.l.Node), 8, 0xffff_8880_0000_0000 | 1<<46, "chain"},
			{"a chain that leads into user memory", at(udp, r.l.Node), 8, 0x1000, "chain"},
			{"a table of 2^32 buckets", at(hashInfo, r.inet.EstMask), 4, 0xffff_ffff, "longer than any kernel"},
			{"a family that is none", at(tcp, r.l.Family), 2, 77, "address family 77"},
			{"a namespace that is none", at(tcp, r.l.Net), 8, 8, "not in net_namespace_list"},
			{"a list of namespaces that loops", at(init, r.net.List), 8, uint64(at(init, r.net.List)), "net_namespace_list"},
			{"a name without end", at(pointer(at(unix, r.unix.Addr)), r.unix.Len), 4, 1 << 30, ""},
		} {
			f.flips = map[mem.Phys][]flip{}
			set(t, k, f, c.at, c.bytes, c.value)
			ctx, cancel := context.WithTimeout(context.Background(), hostileTime)
			v := k.View(ctx, mem.Options{})
			socks, err := Sockets(v, SocketOptions{})
			cancel()
			if err != nil {
				t.Errorf("%s: %s: %v", version, c.name, err)
				continue
			}
			said := false
			for _, x := range v.Findings() {
				said = said || c.want != "" && strings.Contains(x.String(), c.want)
			}
			for _, s := range socks {
				said = said || len(s.Errors) > 0
			}
			if !said {
				t.Errorf("%s: %s: not told; findings %v", version, c.name, v.Findings())
			}
			if len(socks) < len(all)-10 { // those no process holds
				t.Errorf("%s: %s: %d sockets of %d left", version, c.name, len(socks), len(all))
			}
			f.flips = nil
		}
	}
}

// FuzzSockets lists sockets from a recording whose words are changed: 12 bytes for
// each, a page and an offset and what the word is xored with.
func FuzzSockets(f *testing.F) {
	src := &flipped{Source: openRecorded(f, "7.2")}
	k := attachTo(f, src)
	v := k.View(context.Background(), mem.Options{})
	socks, err := Sockets(v, SocketOptions{})
	if err != nil {
		f.Fatal(err)
	}
	pages := v.Snapshot().Pages()
	f.Add([]byte{})
	for i, s := range socks {
		p, err := v.Space().Translate(s.Addr)
		if err != nil {
			f.Fatal(err)
		}
		for n, page := range pages {
			if page.Addr == p.Page() && i%8 == 0 {
				seed := binary.LittleEndian.AppendUint16(nil, uint16(n))
				seed = binary.LittleEndian.AppendUint16(seed, uint16(p-p.Page()))
				f.Add(binary.LittleEndian.AppendUint64(seed, 1<<(i%64)))
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		src.flips = map[mem.Phys][]flip{}
		defer func() { src.flips = nil }()
		for ; len(data) >= 12; data = data[12:] {
			page := pages[int(binary.LittleEndian.Uint16(data))%len(pages)].Addr
			off := int(binary.LittleEndian.Uint16(data[2:])) % (mem.PageSize - 7)
			for i, mask := range data[4:12] {
				src.flips[page] = append(src.flips[page], flip{off + i, mask})
			}
		}
		begun := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), hostileTime)
		defer cancel()
		socks, err := Sockets(k.View(ctx, mem.Options{}), SocketOptions{})
		if (err == nil) == (socks == nil) {
			t.Errorf("%d sockets and error %v", len(socks), err)
		}
		if ctx.Err() != nil {
			t.Errorf("no end within %v", time.Since(begun))
		}
	})
}
