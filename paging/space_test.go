package paging

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/umbravm/umbra/mem"
)

// builder makes page tables in memory, from page 1 on, with the root in page 1.
type builder struct {
	m      ram
	levels int
	next   mem.Phys
}

const (
	flags = 0x8000_0000_0000_0063 // no-execute, dirty, accessed, writable, present
	pat2M = 1 << 12               // PAT of a large page, not an address bit
	keys  = 0x7ff0_0000_0000_0000 // protection key and bits for software
)

func newBuilder(pages, levels int) *builder {
	return &builder{m: make(ram, pages*mem.PageSize), levels: levels, next: 2 * mem.PageSize}
}

func (b *builder) put(a mem.Phys, v uint64) { binary.LittleEndian.PutUint64(b.m[a:], v) }

// place writes entry where the table of the given level has a's, making the tables
// above it.
func (b *builder) place(a mem.Virt, level int, entry uint64) {
	table := mem.Phys(mem.PageSize)
	for l := b.levels; ; l-- {
		slot := table + mem.Phys(uint64(a)>>(12+9*(l-1))&511)*8
		if l == level {
			b.put(slot, entry)
			return
		}
		next := binary.LittleEndian.Uint64(b.m[slot:])
		if next == 0 {
			next = uint64(b.next) | flags | entryUser | keys
			b.put(slot, next)
			b.next += mem.PageSize
		}
		table = mem.Phys(next & entryAddr)
	}
}

func (b *builder) space(cached bool) *Space {
	snap := mem.NewSnapshot(context.Background(), b.m, mem.Options{})
	if cached {
		return NewCached(snap, mem.PageSize|0xfff, b.levels)
	}
	return New(snap, mem.PageSize|0xfff, b.levels)
}

// TestTranslate translates through pages of every size, with every bit set that is
// not part of the address.
func TestTranslate(t *testing.T) {
	for _, levels := range []int{4, 5} {
		for _, cached := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d levels, cached %v", levels, cached), func(t *testing.T) {
				b := newBuilder(64, levels)
				const kernel, user, direct = mem.Virt(0xffff_ffff_8123_4000), mem.Virt(0x7fff_1234_5000), mem.Virt(0xffff_8880_0000_0000)
				b.place(kernel, 1, 0xabc_d000|flags|keys)
				b.place(kernel+0x20_0000, 2, 0x1_4000_0000|flags|entryLarge|pat2M)
				b.place(user, 1, 0xf_ffff_ffff_f000|flags|entryUser|1<<7) // bit 7 is PAT there
				b.place(direct, 3, 0x2_c000_0000|flags|entryLarge|pat2M|keys)
				for _, c := range []struct {
					a    mem.Virt
					want mem.Phys
					size uint64
				}{
					{kernel + 0x123, 0xabc_d123, 4 << 10},
					{kernel + 0x20_0000 + 0x1f, 0x1_4003_401f, 2 << 20},
					{user + 0xfff, 0xf_ffff_ffff_ffff, 4 << 10},
					{direct + 0x3fff_ffff, 0x2_ffff_ffff, 1 << 30},
				} {
					sp := b.space(cached)
					for range 2 { // the second from what is remembered
						if p, err := sp.Translate(c.a); err != nil || p != c.want {
							t.Errorf("%v: %v, %v; want %v", c.a, p, err, c.want)
						}
					}
					if p, size, err := sp.Walk(c.a); err != nil || p != c.want || size != c.size {
						t.Errorf("walk to %v: %v of %#x bytes, %v", c.a, p, size, err)
					}
				}
			})
		}
	}
}

func TestTranslateFaults(t *testing.T) {
	b := newBuilder(64, 4)
	const swapped, gone, top, beyond = mem.Virt(0x1000), mem.Virt(0xffff_8880_0000_0000), mem.Virt(0x80_0000_0000), mem.Virt(0x100_0000_0000)
	b.place(swapped, 1, 0x5000|2)
	b.place(gone, 2, 0x5000|flags&^1|entryLarge) // of the kernel's own, it is not there
	b.place(top, 4, 0x5000|flags|entryLarge)
	b.place(beyond, 4, 0x7000_0000|flags) // a table outside RAM
	for _, c := range []struct {
		a     mem.Virt
		want  error
		layer mem.Layer
	}{
		{swapped, mem.ErrNotPresent, mem.LayerVirtual},
		{swapped + 0x1000, mem.ErrNotPresent, mem.LayerVirtual},
		{gone, mem.ErrNotPresent, mem.LayerVirtual},
		{top, mem.ErrBadTable, mem.LayerTable},
		{beyond, mem.ErrNotRAM, mem.LayerPhysical},
		{0x8000_0000_0000, mem.ErrBadAddress, mem.LayerVirtual},
		{0xffff_7fff_ffff_f000, mem.ErrBadAddress, mem.LayerVirtual},
		{0xff11_0000_0000_0000, mem.ErrBadAddress, mem.LayerVirtual}, // canonical with five levels
	} {
		_, err := b.space(true).Translate(c.a)
		var f *mem.Fault
		if !errors.Is(err, c.want) || !errors.As(err, &f) || f.Layer != c.layer {
			t.Errorf("%v: %v, want %v in %v", c.a, err, c.want, c.layer)
		}
	}
	if sp := newBuilder(8, 5).space(false); !sp.Canonical(0xff11_0000_0000_0000) || sp.Canonical(0xfe11_0000_0000_0000) {
		t.Error("canonical addresses of five levels")
	}
}

// TestRead reads across pages that lie apart, one of which is missing.
func TestRead(t *testing.T) {
	b := newBuilder(64, 4)
	const at = mem.Virt(0xffff_c900_0000_0000)
	for i, frame := range []uint64{40, 50, 30} {
		b.place(at+mem.Virt(i*mem.PageSize), 1, frame*mem.PageSize|flags)
		for j := range uint64(mem.PageSize) {
			b.m[frame*mem.PageSize+j] = byte(i + 1)
		}
	}
	sp := b.space(true)
	buf := make([]byte, 2*mem.PageSize)
	if n, err := sp.Read(at+10, buf); n != len(buf) || err != nil || buf[0] != 1 || buf[5000] != 2 || buf[len(buf)-1] != 3 {
		t.Errorf("%d bytes, %v: %d %d %d", n, err, buf[0], buf[5000], buf[len(buf)-1])
	}
	if n, err := sp.Read(at+mem.PageSize, make([]byte, 3*mem.PageSize)); n != 2*mem.PageSize || !errors.Is(err, mem.ErrNotPresent) {
		t.Errorf("past the end: %d bytes, %v", n, err)
	}
	if v, err := sp.Uint64(at + mem.PageSize - 3); err != nil || v != 0x0202_0202_0201_0101 {
		t.Errorf("a word across pages: %#x, %v", v, err)
	}
	if n, err := sp.Read(^mem.Virt(0)-3, make([]byte, 8)); n != 0 || err == nil {
		t.Errorf("past the last address: %d, %v", n, err)
	}
}

// TestReadBatch reads many pages in the rounds of one, when reads may be put off.
func TestReadBatch(t *testing.T) {
	b := newBuilder(64, 4)
	const at = mem.Virt(0xffff_c900_0000_0000)
	for i := range 30 {
		b.place(at+mem.Virt(i*mem.PageSize), 1, uint64(20+i)*mem.PageSize|flags)
	}
	snap := mem.NewSnapshot(context.Background(), b.m, mem.Options{Batch: true, Static: true})
	sp := NewCached(snap, mem.PageSize, 4)
	n := 0
	var last error
	err := snap.Each(1, func(int) { n, last = sp.Read(at, make([]byte, 30*mem.PageSize)) }, nil)
	if err != nil || last != nil || n != 30*mem.PageSize || snap.Stats().Rounds != 5 {
		t.Errorf("%d bytes, %v, %v in %d rounds", n, err, last, snap.Stats().Rounds)
	}
}

func TestMappings(t *testing.T) {
	b := newBuilder(64, 4)
	const at = mem.Virt(0xffff_ffff_8000_0000)
	b.place(at, 2, 0x20_0000|flags|entryLarge|pat2M)
	b.place(at+0x20_0000, 2, 0x40_0000|flags|entryLarge)
	b.place(at+0x40_0000, 1, 0x60_0000|flags)
	b.place(at+0x40_1000, 1, 0x70_0000|flags)
	b.place(at+0x60_0000, 1, 0x80_0000|flags|entryUser)
	b.place(0x1000, 1, 0x1000|flags|entryUser)
	var got []Mapping
	all := func(m Mapping) bool { got = append(got, m); return true }
	if err := b.space(false).Mappings(at, ^mem.Virt(0), all); err != nil {
		t.Fatal(err)
	}
	want := []Mapping{
		{at, 0x20_0000, 0x40_1000, false},
		{at + 0x40_1000, 0x70_0000, 0x1000, false},
		{at + 0x60_0000, 0x80_0000, 0x1000, true},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	got = nil
	if err := b.space(false).Mappings(0, ^mem.Virt(0), func(m Mapping) bool { got = append(got, m); return false }); err != nil || len(got) != 1 {
		t.Errorf("stopped at the first: %v, %v", got, err)
	}
}

// TestMappingsLoop follows tables that all lead to themselves.
func TestMappingsLoop(t *testing.T) {
	b := newBuilder(4, 5)
	for i := range mem.Phys(entries) {
		b.put(mem.PageSize+8*i, mem.PageSize|flags)
	}
	n := 0
	err := b.space(false).Mappings(0, ^mem.Virt(0), func(Mapping) bool { n++; return true })
	if !errors.Is(err, mem.ErrBadTable) || n > maxVisits {
		t.Errorf("%d runs, %v", n, err)
	}
}

// FuzzSpace reads through page tables made of anything. entry fills what data leaves
// of the tables.
func FuzzSpace(f *testing.F) {
	f.Add([]byte{}, uint64(0x7063), uint64(0x1000), uint16(100), true)
	f.Add([]byte{8: 0x67, 9: 0x20}, uint64(0x1063), ^uint64(0)-8, uint16(9), false)
	f.Fuzz(func(t *testing.T, data []byte, entry, addr uint64, size uint16, five bool) {
		levels := 4
		if five {
			levels = 5
		}
		m := make(ram, 6*mem.PageSize)
		for i := 0; i < len(m); i += 8 {
			binary.LittleEndian.PutUint64(m[i:], entry)
		}
		copy(m[mem.PageSize:], data)
		snap := mem.NewSnapshot(context.Background(), m, mem.Options{})
		sp := NewCached(snap, mem.PageSize, levels)
		buf := make([]byte, size)
		if n, err := sp.Read(mem.Virt(addr), buf); n < 0 || n > len(buf) || (n == len(buf)) != (err == nil) {
			t.Errorf("%d bytes of %d, %v", n, len(buf), err)
		}
		last := mem.Virt(0)
		hi := max(mem.Virt(addr), mem.Virt(addr)+1<<22) // not behind the last address
		_ = sp.Mappings(mem.Virt(addr), hi, func(m Mapping) bool {
			if m.Virt < last || m.Size == 0 {
				t.Errorf("mapping %v behind %v", m, last)
			}
			last = m.Virt + mem.Virt(m.Size) - 1
			return true
		})
	})
}
