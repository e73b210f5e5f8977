package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// TestFilesHostileLive flips random bits in what listing files, areas and mounts of
// a real guest reads.
func TestFilesHostileLive(t *testing.T) {
	for _, version := range []string{"5.10", "7.2"} {
		t.Run(version, func(t *testing.T) {
			g := bareGuest(t, version)
			k := attach(t, g)
			ask(t, g, "1")
			for name, walk := range map[string]func(v *kernel.View) (int, error){
				"files":  func(v *kernel.View) (int, error) { x, err := Files(v, FileOptions{}); return len(x), err },
				"maps":   func(v *kernel.View) (int, error) { x, err := Maps(v, MapOptions{}); return len(x), err },
				"mounts": func(v *kernel.View) (int, error) { x, err := Mounts(v, MountOptions{}); return len(x), err },
			} {
				t.Run(name, func(t *testing.T) { flipUnder(t, k.Source(), name, walk) })
			}
		})
	}
}

// TestFDTable reads tables that were written by hand, and such as no kernel makes.
func TestFDTable(t *testing.T) {
	s, k := openWritten(t, "7.2")
	l, err := kernel.Layout[fdLayout](k)
	if err != nil {
		t.Fatal(err)
	}
	const table, open, cloexec, array = 512, 1024, 1056, 1088
	at := func(base int, f btf.Field) int { return base + int(f.Offset) }
	s.put(at(0, l.Table), uint64(s.base)+table)
	s.put(at(table, l.Files), uint64(s.base)+array)
	s.put(at(table, l.Open), uint64(s.base)+open)
	s.put(at(table, l.CloseOnExec), uint64(s.base)+cloexec)
	s.put(open, 1|1<<3|1<<5)
	s.put(cloexec, 1<<3|1<<4)
	s.put(array, 0x1000)
	s.put(array+3*8, 0x2000)
	s.put(array+4*8, 0x3000) // not open
	s.put(open+8, 1<<1)
	s.put(array+65*8, 0x4000)
	read := func(max uint32) (out []openFD, err error) {
		binary.LittleEndian.PutUint32(s.page[at(table, l.Max):], max)
		err = k.View(context.Background(), mem.Options{}).Do(func(w *kernel.Walk) { out = fdTable(w, l, s.base) })
		return out, err
	}
	slot := func(i int) mem.Virt { return s.base + array + mem.Virt(8*i) }
	for max, want := range map[uint32][]openFD{
		0:   nil,
		3:   {{0, 0x1000, false, slot(0)}},
		64:  {{0, 0x1000, false, slot(0)}, {3, 0x2000, true, slot(3)}},
		128: {{0, 0x1000, false, slot(0)}, {3, 0x2000, true, slot(3)}, {65, 0x4000, false, slot(65)}},
	} {
		got, err := read(max)
		if err != nil || len(got) != len(want) {
			t.Errorf("%d descriptors: %v, %v, want %v", max, got, err, want)
			continue
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%d descriptors: %v, want %v", max, got[i], want[i])
			}
		}
	}
	if got, err := read(1 << 31); !errors.Is(err, kernel.ErrTooLong) || got != nil {
		t.Errorf("2^31 descriptors: %v, %v", got, err)
	}
	s.put(at(table, l.Files), 0x1000)
	if got, err := read(64); err == nil || got != nil {
		t.Errorf("an array at no memory: %v, %v", got, err)
	}
}

// FuzzFDTable reads tables out of a page of any content.
func FuzzFDTable(f *testing.F) {
	s, k := openWritten(f, "7.2")
	l, err := kernel.Layout[fdLayout](k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, uint32(64))
	f.Add([]byte(strings.Repeat("\xff", 600)), uint32(256))
	f.Fuzz(func(t *testing.T, data []byte, max uint32) {
		clear(s.page[:])
		copy(s.page[512:], data)
		s.put(int(l.Table.Offset), uint64(s.base)+256)
		for i, field := range []btf.Field{l.Files, l.Open, l.CloseOnExec} {
			s.put(256+int(field.Offset), uint64(s.base)+512+uint64(i)*1024)
		}
		binary.LittleEndian.PutUint32(s.page[256+l.Max.Offset:], max)
		var out []openFD
		err := k.View(context.Background(), mem.Options{}).Do(func(w *kernel.Walk) { out = fdTable(w, l, s.base) })
		if err != nil && out != nil {
			t.Fatalf("both %d descriptors and %v", len(out), err)
		}
		for i, fd := range out {
			if fd.File == 0 || uint32(fd.FD) >= max || i > 0 && out[i-1].FD >= fd.FD {
				t.Fatalf("descriptor %d: %+v", i, fd)
			}
		}
	})
}

// FuzzRBTree reads trees out of a page of any content: a word whose top byte is 0xee
// becomes a pointer into the page.
func FuzzRBTree(f *testing.F) {
	s, k := openWritten(f, "5.10")
	l, err := kernel.Layout[rbLayout](k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0, 1, 0, 0, 0, 0, 0, 0xee})
	f.Add([]byte(strings.Repeat("\x00\x00\x00\x00\x00\x00\x00\xee", 100)))
	f.Fuzz(func(t *testing.T, data []byte) {
		clear(s.page[:])
		copy(s.page[:], data)
		for off := 0; off < mem.PageSize; off += 8 {
			if x := word(s.page[:], off); x>>56 == 0xee {
				s.put(off, uint64(s.base)+x&0xff8)
			}
		}
		var n int
		err := k.View(context.Background(), mem.Options{}).Do(func(w *kernel.Walk) {
			tree := rbWalk{w: w, l: l}
			tree.tree(s.base)
			n = len(tree.out)
		})
		if n > mem.PageSize/8 { // each place is visited once
			t.Fatalf("%d nodes, %v", n, err)
		}
	})
}
