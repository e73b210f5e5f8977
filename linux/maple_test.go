package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source/replay"
)

// written is a machine in which one page holds what a test wrote there.
type written struct {
	*replay.Source
	at   mem.Phys
	page [mem.PageSize]byte
	base mem.Virt // where the kernel sees it
}

func (s *written) ReadPhys(ctx context.Context, reads []mem.Read) error {
	if err := s.Source.ReadPhys(ctx, reads); err != nil {
		return err
	}
	for _, r := range reads {
		for i := range r.Buf[:r.N] {
			if a := r.Addr + mem.Phys(i); a.Page() == s.at {
				r.Buf[i] = s.page[a-s.at]
			}
		}
	}
	return nil
}

// openWritten attaches to a recording and chooses one of its pages to write to: that
// of a task that is not needed to read others.
func openWritten(t testing.TB, version string) (*written, *kernel.Kernel) {
	t.Helper()
	src := &written{Source: openRecorded(t, version), at: 1}
	k := attachTo(t, src)
	v := k.View(context.Background(), mem.Options{})
	tasks, err := Tasks(v, TaskOptions{Brief: true})
	if err != nil {
		t.Fatal(err)
	}
	src.base = tasks[len(tasks)-1].Addr.Page()
	if src.at, err = v.Space().Translate(src.base); err != nil {
		t.Fatal(err)
	}
	return src, k
}

// put writes a word at off of the page.
func (s *written) put(off int, x uint64) { binary.LittleEndian.PutUint64(s.page[off:], x) }

// enode is the pointer to node i of a type: nodes lie one after another in the page.
func (s *written) enode(i int, kind uint64) uint64 {
	return uint64(s.base) + uint64(i)*mapleNodeSize | kind<<mapleTypeShift | 4
}

// node writes a node with slots at pivots; the last pivot is its end.
func (s *written) node(l *mapleLayout, i int, kind uint64, pivots, slots []uint64) {
	m := mapleWalk{l: l}
	p, sl, _, _ := m.shape(kind)
	at := i * mapleNodeSize
	clear(s.page[at : at+mapleNodeSize])
	s.put(at+int(l.Parent.Offset), uint64(s.base)|1)
	for j, x := range pivots {
		s.put(at+int(p.Offset)+8*j, x)
	}
	for j, x := range slots {
		s.put(at+int(sl.Offset)+8*j, x)
	}
}

const endOfIndexes = ^uint64(0)

// entries reads the tree whose root is the word root.
func (s *written) entries(t testing.TB, k *kernel.Kernel, root uint64) ([]mapleEntry, error) {
	t.Helper()
	l, err := kernel.Layout[mapleLayout](k)
	if err != nil {
		t.Fatal(err)
	}
	s.put(int(l.Root.Offset), root)
	var out []mapleEntry
	err = k.View(context.Background(), mem.Options{}).Do(func(w *kernel.Walk) { out = mapleEntries(w, l, s.base) })
	return out, err
}

// TestMaple reads trees that were written by hand.
func TestMaple(t *testing.T) {
	s, k := openWritten(t, "7.2")
	l, err := kernel.Layout[mapleLayout](k)
	if err != nil {
		t.Fatal(err)
	}
	full := make([]uint64, 16)
	pivots := make([]uint64, 15)
	for i := range full {
		full[i] = 0x1000 * uint64(i+1)
	}
	for i := range pivots {
		pivots[i] = uint64(10*i + 9)
	}
	s.node(l, 1, mapleLeaf64, []uint64{9, 19, 29}, []uint64{0, 0x1000, 0, 0x2000})
	s.node(l, 2, mapleLeaf64, pivots, full)
	s.node(l, 3, mapleARange64, []uint64{99, 0x1fff}, []uint64{s.enode(4, mapleLeaf64), s.enode(5, mapleRange64), s.enode(6, mapleLeaf64)})
	s.node(l, 4, mapleLeaf64, []uint64{49, 99}, []uint64{0x3000, 0})
	s.node(l, 5, mapleRange64, []uint64{0xfff}, []uint64{s.enode(7, mapleLeaf64), s.enode(8, mapleLeaf64)})
	s.node(l, 6, mapleLeaf64, []uint64{endOfIndexes}, []uint64{0x6000})
	s.node(l, 7, mapleLeaf64, []uint64{0xfff}, []uint64{0x4000})
	s.node(l, 8, mapleLeaf64, []uint64{0x1ffe}, []uint64{2 | 257<<2, 0x5000}) // XA_ZERO_ENTRY, reserved
	s.node(l, 9, mapleRange64, []uint64{endOfIndexes}, []uint64{s.enode(9, mapleRange64)})
	s.node(l, 10, mapleLeaf64, []uint64{50, 40, 60}, []uint64{0x1000, 0x2000, 0x3000})
	s.node(l, 11, mapleARange64, []uint64{5}, []uint64{s.enode(12, mapleLeaf64), 0})
	s.node(l, 12, mapleLeaf64, []uint64{6}, []uint64{0x1000, 0x2000})
	s.node(l, 13, mapleLeaf64, []uint64{endOfIndexes}, []uint64{0x1000})
	s.put(13*mapleNodeSize+int(l.Parent.Offset), uint64(s.base)+13*mapleNodeSize)
	for _, c := range []struct {
		name string
		root uint64
		want []mapleEntry
		err  error // nil with want nil: any
	}{
		{"empty", 0, []mapleEntry{}, nil},
		{"one entry", 0x7000, []mapleEntry{{0, 0, 0x7000}}, nil},
		{"leaf", s.enode(1, mapleLeaf64) | mapleRoot, []mapleEntry{{10, 19, 0x1000}, {30, endOfIndexes, 0x2000}}, nil},
		{"three levels", s.enode(3, mapleARange64) | mapleRoot, []mapleEntry{
			{0, 49, 0x3000}, {100, 0xfff, 0x4000}, {0x1fff, 0x1fff, 0x5000}, {0x2000, endOfIndexes, 0x6000}}, nil},
		{"loop", s.enode(9, mapleRange64) | mapleRoot, nil, kernel.ErrTooLong},
		{"pivots that go back", s.enode(10, mapleLeaf64) | mapleRoot, nil, nil},
		{"child beyond its parent", s.enode(11, mapleARange64) | mapleRoot, nil, nil},
		{"dead node", s.enode(13, mapleLeaf64) | mapleRoot, nil, nil},
		{"unknown type", s.enode(1, 7) | mapleRoot, nil, nil},
		{"no memory", 0x123456781200 | mapleRoot | mapleLeaf64<<mapleTypeShift, nil, nil},
	} {
		got, err := s.entries(t, k, c.root)
		switch {
		case c.want == nil && (err == nil || got != nil || c.err != nil && !errors.Is(err, c.err)):
			t.Errorf("%s: %v, %v", c.name, got, err)
		case c.want != nil && (err != nil || !slices.Equal(got, c.want)):
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
	got, err := s.entries(t, k, s.enode(2, mapleLeaf64)|mapleRoot)
	if err != nil || len(got) != 16 || got[15] != (mapleEntry{150, endOfIndexes, 0x10000}) {
		t.Errorf("a full leaf: %v, %v", got, err)
	}
}

// FuzzMaple reads trees out of a page of any content. A word whose top byte is 0xee
// becomes a pointer to the node its low byte says, so that nodes find each other.
func FuzzMaple(f *testing.F) {
	s, k := openWritten(f, "7.2")
	link := func(i int, kind uint64) []byte {
		return binary.LittleEndian.AppendUint64(nil, 0xee<<56|kind<<8|uint64(i))
	}
	f.Add(link(1, mapleLeaf64))
	f.Add(append(link(1, mapleRange64), make([]byte, 4000)...))
	f.Add(append(append(link(1, mapleRange64), make([]byte, mapleNodeSize-8+128)...), link(1, mapleRange64)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		clear(s.page[:])
		copy(s.page[mapleNodeSize:], data[min(8, len(data)):])
		for off := 0; off < mem.PageSize; off += 8 {
			if x := word(s.page[:], off); x>>56 == 0xee {
				s.put(off, s.enode(int(x&0xf), x>>8&7))
			}
		}
		var root [8]byte
		copy(root[:], data)
		x := binary.LittleEndian.Uint64(root[:])
		if x>>56 == 0xee {
			x = s.enode(int(x&0xf), x>>8&7) | mapleRoot
		}
		got, err := s.entries(t, k, x)
		if err != nil && got != nil {
			t.Fatalf("both %d entries and %v", len(got), err)
		}
		for i, e := range got {
			if e.First > e.Last || i > 0 && got[i-1].Last >= e.First || e.Ptr == 0 {
				t.Fatalf("entry %d, %+v, is out of order", i, e)
			}
		}
	})
}
