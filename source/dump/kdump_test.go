package dump

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"github.com/umbravm/umbra/mem"
)

func TestQEMUKdump(t *testing.T) {
	m := testMachine(t)
	if !slices.Contains(m.formats, "kdump-zlib") {
		t.Fatalf("QEMU writes only %v", m.formats)
	}
	want := mem.Layout{{Start: 0, Size: machineRAM}, {Start: 0xfffc0000, Size: 0x40000}}
	for _, name := range m.formats {
		if name == "elf" {
			continue
		}
		s := open(t, m.file(name), Options{})
		if got := s.Info().Layout; !slices.Equal(got, want) {
			t.Errorf("%s: layout = %v, want %v", name, got, want)
		}
		checkMachine(t, s, m)
	}
}

// unfoldFile writes what a flattened file holds the way makedumpfile -R does:
// each record to its place, in their order.
func unfoldFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "unfolded")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b = b[4096:]; ; {
		off, size := int64(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint64(b[8:])
		if off < 0 {
			return out
		}
		if _, err := f.WriteAt(b[16:16+size], off); err != nil {
			t.Fatal(err)
		}
		b = b[16+size:]
	}
}

func TestKdumpUnfolded(t *testing.T) {
	m := testMachine(t)
	checkMachine(t, open(t, unfoldFile(t, m.file("kdump-zlib")), Options{}), m)
}

// packers compress as makedumpfile does, page by page.
var packers = map[string]struct {
	flag uint32
	pack func(page []byte) []byte
}{
	"raw": {pageRaw, func(p []byte) []byte { return p }},
	"zlib": {pageZlib, func(p []byte) []byte {
		var b bytes.Buffer
		w := zlib.NewWriter(&b)
		w.Write(p)
		w.Close()
		return b.Bytes()
	}},
	"lzo":    {pageLZO, packLZO},
	"snappy": {pageSnappy, func(p []byte) []byte { return snappy.Encode(nil, p) }},
	"zstd": {pageZstd, func(p []byte) []byte {
		w, err := zstd.NewWriter(nil)
		if err != nil {
			panic(err)
		}
		defer w.Close()
		return w.EncodeAll(p, nil)
	}},
}

// packLZO writes LZO1X streams of the simplest kind: literals, and one long
// match for a page that repeats its first 16 bytes.
func packLZO(p []byte) []byte {
	out := []byte{17 + 16}
	out = append(out, p[:16]...)
	if !bytes.Equal(p[16:], p[:len(p)-16]) {
		return p // incompressible: stored
	}
	// A match of up to 16 KiB distance: 001 and 5 bits of length, where 0 means
	// that 33 and 255 for each following zero byte and the next byte are added.
	rest := len(p) - 16 - 33
	out = append(out, 0x20)
	for ; rest > 255; rest -= 255 {
		out = append(out, 0)
	}
	out = append(out, byte(rest))
	out = binary.LittleEndian.AppendUint16(out, (16-1)<<2)
	return append(out, 0x11, 0, 0)
}

// buildKdump writes pages (by page number) as a kdump file; left are pages that
// exist and are left out.
func buildKdump(pages map[uint64][]byte, left []uint64, packer string) []byte {
	le := binary.LittleEndian
	const block, mapBlocks = 4096, 2
	b := make([]byte, (2+mapBlocks)*block)
	copy(b, kdumpMagic)
	le.PutUint32(b[8:], 6)
	copy(b[utsMachine:], "x86_64")
	le.PutUint32(b[428:], block)
	le.PutUint32(b[432:], 1)
	le.PutUint32(b[436:], mapBlocks)
	le.PutUint32(b[440:], block*8)
	le.PutUint32(b[block+8:], 31)
	le.PutUint64(b[block+96:], block*8)
	var order []uint64
	for pfn := range pages {
		order = append(order, pfn)
	}
	slices.Sort(order)
	for _, pfn := range append(slices.Clone(order), left...) {
		b[2*block+pfn/8] |= 1 << (pfn % 8)
	}
	data := make([]byte, 0)
	base := len(b) + len(order)*kdumpDescSize
	for _, pfn := range order {
		b[3*block+pfn/8] |= 1 << (pfn % 8)
		p := packers[packer]
		packed, flag := p.pack(pages[pfn]), p.flag
		if len(packed) >= block {
			packed, flag = pages[pfn], pageRaw
		}
		b = le.AppendUint64(b, uint64(base+len(data)))
		b = le.AppendUint32(b, uint32(len(packed)))
		b = le.AppendUint32(b, flag)
		b = le.AppendUint64(b, 0)
		data = append(data, packed...)
	}
	return append(b, data...)
}

func writeFile(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKdumpCodecs(t *testing.T) {
	data := testData()
	pages := map[uint64][]byte{}
	for i := range uint64(len(data) / mem.PageSize) {
		pages[i*2+4095] = data[i*mem.PageSize:][:mem.PageSize] // across a stride of the ranks
	}
	for name, p := range packers {
		t.Run(name, func(t *testing.T) {
			if got := p.pack(pages[4095]); name != "raw" && len(got) >= mem.PageSize {
				t.Fatalf("the first page was not compressed: %d bytes", len(got))
			}
			s := open(t, writeFile(t, buildKdump(pages, []uint64{4096}, name)), Options{Format: Kdump})
			for pfn, want := range pages {
				if got := readAll(t, s, mem.Phys(pfn*mem.PageSize), mem.PageSize); !bytes.Equal(got, want) {
					t.Errorf("page %d differs", pfn)
				}
			}
			buf := make([]byte, 2*mem.PageSize)
			n, err := mem.Gather(context.Background(), s, 4095*mem.PageSize, buf)
			if n != mem.PageSize || !errors.Is(err, mem.ErrNotRecorded) {
				t.Errorf("read into a page left out = %d, %v", n, err)
			}
			if n, err := mem.Gather(context.Background(), s, 4098*mem.PageSize, buf); n != 0 || !errors.Is(err, mem.ErrNotRAM) {
				t.Errorf("read of no RAM = %d, %v", n, err)
			}
			if e, ok := s.Data(0); !ok || e != (mem.Extent{Start: 4095 * mem.PageSize, Size: 3 * mem.PageSize}) {
				t.Errorf("data = %v, %v: a page left out must be in it", e, ok)
			}
		})
	}
}

// Pages of a real kernel, compressed by liblzo2. The sum is that of the same
// pages in the core that makedumpfile was given.
func TestMakedumpfileLZO(t *testing.T) {
	s := open(t, "testdata/makedumpfile-lzo.kdump", Options{})
	sum := sha256.New()
	for _, e := range s.Info().Layout {
		sum.Write(readAll(t, s, e.Start, int(e.Size)))
	}
	if n := s.Info().Layout.Size(); n != 33*mem.PageSize {
		t.Errorf("%d bytes of memory", n)
	}
	const want = "d3dd9613a6e00222836382d2bc43ac14b993a801f66704c64d9d3e85a2470883"
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		t.Errorf("sum = %s, want %s", got, want)
	}
	if !bytes.HasPrefix(s.VMCoreInfo(), []byte("OSRELEASE=6.1.0-50-cloud-amd64\n")) {
		t.Errorf("VMCOREINFO = %q", s.VMCoreInfo())
	}
	regs, err := s.Registers(context.Background())
	if err != nil || len(regs) != 1 || regs[0].CR3 != 0x32aa000 || regs[0].EFER&eferLMA == 0 {
		t.Errorf("registers = %+v, %v", regs, err)
	}
}

func TestKdumpBadPages(t *testing.T) {
	pages := map[uint64][]byte{1: testData()[:mem.PageSize]}
	for name, p := range packers {
		if name == "raw" {
			continue
		}
		good := buildKdump(pages, nil, name)
		short := p.pack(pages[1][:mem.PageSize-16])
		long := p.pack(append(slices.Clone(pages[1]), pages[1]...))
		for what, packed := range map[string][]byte{"shorter": short, "longer": long, "garbage": []byte("umbra"), "other codec": good[:64]} {
			b := slices.Clone(good[:4*4096+kdumpDescSize])
			binary.LittleEndian.PutUint32(b[4*4096+8:], uint32(len(packed)))
			s := open(t, writeFile(t, append(b, packed...)), Options{})
			n, err := mem.Gather(context.Background(), s, mem.PageSize, make([]byte, 8))
			if n != 0 || !errors.Is(err, ErrFormat) {
				t.Errorf("%s, a page %s: %d, %v", name, what, n, err)
			}
		}
	}
}

func TestKdumpTruncated(t *testing.T) {
	m := testMachine(t)
	for _, c := range []struct{ name, path string }{
		{"flattened", m.file("kdump-zlib")},
		{"unfolded", unfoldFile(t, m.file("kdump-zlib"))},
	} {
		whole, err := os.ReadFile(c.path)
		if err != nil {
			t.Fatal(err)
		}
		for _, cut := range []int{1, 1000, len(whole) / 4, len(whole) / 2} {
			s := open(t, writeFile(t, whole[:len(whole)-cut]), Options{})
			if s.Missing() == 0 || !bytes.Contains([]byte(s.Info().Detail), []byte("truncated")) {
				t.Errorf("%s without its last %d bytes: missing %d, %q", c.name, cut, s.Missing(), s.Info().Detail)
			}
			faults := checkNothingInvented(t, s, m.ram)
			if faults == 0 && cut > 1000 {
				t.Errorf("%s without its last %d bytes: no fault", c.name, cut)
			}
		}
	}
}

// checkNothingInvented reads every page and fails where one is read that is not
// the machine's. It returns the pages that fault, each for being cut off.
func checkNothingInvented(t *testing.T, s *Source, ram []byte) (faults int) {
	t.Helper()
	var reads []mem.Read
	for a := 0; a < len(ram); a += mem.PageSize {
		reads = append(reads, mem.Read{Addr: mem.Phys(a), Buf: make([]byte, mem.PageSize)})
	}
	if err := s.ReadPhys(context.Background(), reads); err != nil {
		t.Fatal(err)
	}
	for _, r := range reads {
		if !bytes.Equal(r.Buf[:r.N], ram[r.Addr:][:r.N]) {
			t.Fatalf("page %v differs", r.Addr)
		}
		if (r.N < len(r.Buf)) != (r.Err != nil) {
			t.Fatalf("page %v: %d bytes and error %v", r.Addr, r.N, r.Err)
		}
		if r.Err != nil {
			faults++
			if !errors.Is(r.Err, ErrTruncated) {
				t.Fatalf("page %v: %v, want that the file is cut off", r.Addr, r.Err)
			}
		}
	}
	return faults
}

func TestFlatOverlay(t *testing.T) {
	for _, writes := range [][][2]int{
		{{0, 10}, {5, 10}},
		{{5, 10}, {0, 10}},
		{{0, 30}, {10, 5}, {12, 1}, {40, 4}},
		{{10, 5}, {0, 30}},
		{{0, 8}, {0, 4}, {0, 8}, {2, 3}},
	} {
		want := make([]byte, 64)
		file := append([]byte(flatMagic), make([]byte, flatHeader-16)...)
		file[23], file[31] = flatType, flatVersion
		end := 0
		for i, w := range writes {
			data := bytes.Repeat([]byte{byte('A' + i)}, w[1])
			copy(want[w[0]:], data)
			file = binary.BigEndian.AppendUint64(file, uint64(w[0]))
			file = binary.BigEndian.AppendUint64(file, uint64(w[1]))
			file = append(file, data...)
			end = max(end, w[0]+w[1])
		}
		file = append(file, bytes.Repeat([]byte{0xff}, 16)...)
		f, err := openFile(writeFile(t, file))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		u, err := openFlat(context.Background(), f)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, end)
		if n, err := u.ReadAt(got, 0); n != end || err != nil || !bytes.Equal(got, want[:end]) {
			t.Errorf("%v: %d bytes %q, %v; want %q", writes, n, got, err, want[:end])
		}
		if u.size() != int64(end) || u.cut() != 0 {
			t.Errorf("%v: size %d, cut %d", writes, u.size(), u.cut())
		}
	}
}

func TestKdumpHeaderErrors(t *testing.T) {
	good := buildKdump(map[uint64][]byte{1: testData()[:mem.PageSize]}, nil, "raw")
	put := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[at:], v) }
	}
	for name, c := range map[string]struct {
		change func([]byte)
		want   string
	}{
		"version": {put(8, 7), "header version 7"},
		"machine": {func(b []byte) { copy(b[utsMachine:], "aarch64\x00") }, `machine "aarch64"`},
		"block":   {put(428, 65536), "blocks of 65536 bytes"},
		"sub":     {put(432, 0), "without a sub header"},
		"bitmap":  {put(436, 0), "bitmaps of 0 bytes"},
		"pages":   {put(4096+96, 1<<20), "kdump of 1048576 pages"},
		"split":   {put(4096+12, 1), "split kdump"},
		"cut":     {put(436, 1<<20), "the dump file ends before this"},
	} {
		b := slices.Clone(good)
		c.change(b)
		_, err := Open(context.Background(), writeFile(t, b), Options{})
		if err == nil || !bytes.Contains(fmt.Append(nil, err), []byte(c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
