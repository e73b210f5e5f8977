package dump

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/umbravm/umbra/mem"
)

// memory is a dump file in a test's memory.
type memory []byte

func (m memory) size() int64 { return int64(len(m)) }
func (m memory) cut() uint64 { return 0 }

func (m memory) ReadAt(buf []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(buf, m[off:])
	if n < len(buf) {
		return n, io.EOF
	}
	return n, nil
}

func (m memory) nextData(off, end int64) (int64, int64, bool) { return off, end, off < end }

// seed adds what QEMU wrote, cut down: see testdata/README.
func seed(f *testing.F, names ...string) {
	for _, name := range names {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// checkImage holds an image to what every source promises, over its whole layout
// as far as some hundred reads go.
func checkImage(t *testing.T, img image, err error) {
	if err != nil {
		return
	}
	l := img.layout()
	if again, err := mem.NewLayout(l...); err != nil || len(again) != len(l) || len(l) == 0 {
		t.Fatalf("layout %v: %v", l, err)
	}
	if img.describe() == "" {
		t.Fatal("no description")
	}
	buf := make([]byte, 3*mem.PageSize)
	for i, e := range l {
		if i == 32 {
			break
		}
		for _, a := range []mem.Phys{e.Start, e.Start + mem.Phys(e.Size/2), e.End() - 1, e.End(), e.Start - 1} {
			n, err := img.read(a, buf)
			if (n < len(buf)) != (err != nil) || n > len(buf) {
				t.Fatalf("read %v: %d of %d bytes, %v", a, n, len(buf), err)
			}
			if _, ok := l.Find(a); !ok && !errors.Is(err, mem.ErrNotRAM) {
				t.Fatalf("read %v, which is no RAM: %d bytes, %v", a, n, err)
			}
		}
	}
	at := mem.Phys(0)
	for range 64 {
		e, ok := img.data(at)
		if !ok {
			break
		}
		if in, ok := l.Find(e.Start); !ok || e.Size == 0 || e.Start < at || e.Size > uint64(in.End()-e.Start) {
			t.Fatalf("data from %v on: %v", at, e)
		}
		at = e.End()
	}
}

// either fails unless there is exactly one of a value and an error.
func either(t *testing.T, value bool, err error) {
	t.Helper()
	if value == (err != nil) {
		t.Fatalf("value %t and error %v", value, err)
	}
}

func FuzzELF(f *testing.F) {
	seed(f, "qemu.elf", "qemu-paging.elf")
	f.Add(buildCore(false, []program{{typ: ptLoad, offset: 84, filesz: 4, memsz: 8}}, []byte("RAM!")))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, err := openELF(memory(b))
		either(t, s != nil, err)
		checkImage(t, s, err)
	})
}

func FuzzKdump(f *testing.F) {
	seed(f, "qemu.kdump", "makedumpfile-lzo.kdump")
	pages := map[uint64][]byte{1: testData()[:mem.PageSize], 5000: testData()[mem.PageSize:][:mem.PageSize]}
	for name := range packers {
		f.Add(buildKdump(pages, []uint64{7}, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var st storage = memory(b)
		if u, err := openFlat(context.Background(), st); err == nil {
			st = u
		}
		k, _, err := openKdump(context.Background(), st)
		either(t, k != nil, err)
		if err == nil {
			checkImage(t, k, err)
			k.close()
		}
	})
}

func FuzzFlat(f *testing.F) {
	seed(f, "qemu.kdump")
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := openFlat(context.Background(), memory(b))
		either(t, u != nil, err)
		if err != nil {
			return
		}
		var end int64
		for _, p := range u.pieces {
			if p.size <= 0 || p.off < end || p.at < 0 || p.at+p.size > int64(len(b)) {
				t.Fatalf("pieces %v", u.pieces)
			}
			end = p.end()
		}
		if u.size() != end {
			t.Fatalf("size %d, the last piece ends at %d", u.size(), end)
		}
		buf := make([]byte, 9000)
		for _, off := range []int64{0, end / 2, end - 1, end} {
			n, err := readFull(u, buf, max(off, 0))
			if (n < len(buf)) != (err != nil) {
				t.Fatalf("read at %d: %d bytes, %v", off, n, err)
			}
		}
	})
}

func FuzzLiME(f *testing.F) {
	data := testData()
	f.Add(append(limeRange(0x1000, data[:0x1c00]), limeRange(0x100000, data[0x2000:0x4000])...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := openLiME(memory(b))
		either(t, s != nil, err)
		checkImage(t, s, err)
	})
}

// FuzzPage unfolds hostile pages: one page exactly, or an error, and not a byte
// outside the page.
func FuzzPage(f *testing.F) {
	page := testData()[:mem.PageSize]
	for _, p := range packers {
		f.Add(p.pack(page), p.flag)
	}
	f.Fuzz(func(t *testing.T, packed []byte, flags uint32) {
		var c codec
		defer c.close()
		room := bytes.Repeat([]byte{0xa5}, 3*mem.PageSize)
		err := c.decode(room[mem.PageSize:2*mem.PageSize:2*mem.PageSize], packed, flags)
		for i, b := range room {
			if (i < mem.PageSize || i >= 2*mem.PageSize) && b != 0xa5 {
				t.Fatalf("byte %d outside the page was written, %v", i, err)
			}
		}
	})
}

func FuzzLayout(f *testing.F) {
	f.Add("0-0x80000000,0x100000000-0x180000000")
	f.Add("0x1000-4096, 5-6")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLayout(s)
		either(t, l != nil, err)
		if err != nil {
			return
		}
		if again, err := ParseLayout(FormatLayout(l)); err != nil || len(again) != len(l) {
			t.Fatalf("%q became %q: %v", s, FormatLayout(l), err)
		}
	})
}
