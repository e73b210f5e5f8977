package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/paging"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/replay"
)

// filtered is a dump that leaves pages out.
type filtered struct {
	pages int
	out   map[int]bool
}

func (d *filtered) Info() source.Info {
	return source.Info{Layout: mem.Layout{{Start: 0, Size: uint64(d.pages) * mem.PageSize}}}
}
func (d *filtered) Close() error { return nil }
func (d *filtered) ReadPhys(_ context.Context, reads []mem.Read) error {
	for i := range reads {
		r := &reads[i]
		r.N, r.Err = 0, nil
		for r.N < len(r.Buf) {
			a := r.Addr + mem.Phys(r.N)
			if d.out[int(a/mem.PageSize)] {
				r.Err = &mem.Fault{Layer: mem.LayerPhysical, Addr: uint64(a), Err: mem.ErrNotRecorded}
				break
			}
			r.N += min(len(r.Buf)-r.N, int(a.Page()+mem.PageSize-a))
		}
	}
	return nil
}

// TestEachPage looks through a dump that leaves pages out: it must see all others.
func TestEachPage(t *testing.T) {
	d := &filtered{pages: 1000, out: map[int]bool{0: true, 7: true, 8: true, 255: true, 256: true, 511: true, 600: true, 999: true}}
	var want, got []int
	for i := range d.pages {
		if !d.out[i] {
			want = append(want, i)
		}
	}
	err := newFinder(context.Background(), d).eachPage(func(at mem.Phys, _ []byte) bool {
		got = append(got, int(at/mem.PageSize))
		return true
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d pages seen of %d, %v", len(got), len(want), err)
	}
}

// TestRecordSearch records a machine whose kernel is found by a search through RAM:
// what was only looked through is not kept, and the kernel is found in what is.
func TestRecordSearch(t *testing.T) {
	m := record(t, "5.10")
	k, err := Attach(context.Background(), m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	m.leaveNote(t, k)
	m.tick(t, k)
	m.regs = nil
	var fillers []mem.Phys // pages that nobody needs
	for a := mem.Phys(0x100_0000); len(fillers) < 300; a += mem.PageSize {
		if n, _ := mem.Gather(context.Background(), m.Source, a, make([]byte, 1)); n == 0 {
			m.pages[a] = make([]byte, mem.PageSize)
			fillers = append(fillers, a)
		}
	}
	r := replay.Record(m, []string{"ps"})
	if k, err = Attach(context.Background(), r, Options{}); err != nil {
		t.Fatal(err)
	}
	b, err := r.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range fillers {
		if _, kept := b.Pages[a]; kept {
			t.Fatalf("the recording keeps %d pages, with those that were only looked through", len(b.Pages))
		}
	}
	s, err := replay.New(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Attach(context.Background(), s, Options{})
	if err != nil || again.Banner() != k.Banner() || again.Slide() != k.Slide() {
		t.Errorf("attach to the recording: %v", err)
	}
}

// mirrors is RAM full of pages that each look like a page-table root, all leading to
// tables that lead to themselves.
type mirrors struct{ filtered }

func (d *mirrors) ReadPhys(_ context.Context, reads []mem.Read) error {
	for i := range reads {
		r := &reads[i]
		for at := 0; at < len(r.Buf); at += 8 {
			a := r.Addr + mem.Phys(at)
			entry := uint64(0x1063)
			if a&(mem.PageSize-1) == mem.PageSize-8 && a.Page() != 0x1000 {
				entry = uint64(a/mem.PageSize%1000)<<12 | uint64(a/mem.PageSize/1000)<<52 | 0x63
			}
			binary.LittleEndian.PutUint64(r.Buf[at:], entry)
		}
		r.N, r.Err = len(r.Buf), nil
	}
	return nil
}

// TestScanBounded looks for page tables where everything looks like some.
func TestScanBounded(t *testing.T) {
	f := newFinder(context.Background(), &mirrors{filtered{pages: 4000}})
	cs, err := f.fromTables()
	if len(cs) > 0 || !errors.Is(err, ErrTooLong) {
		t.Errorf("%d candidates, %v", len(cs), err)
	}
	if f.visits > maxEntries+1<<21 {
		t.Errorf("%d entries looked at", f.visits)
	}
}

// large is a machine with more RAM than was recorded.
type large struct{ *machine }

func (l large) Info() source.Info {
	info := l.machine.Info()
	info.Layout = mem.Layout{{Start: 0, Size: 8 << 30}}
	return info
}

// TestAheadBounded attaches to a kernel whose direct map is in small pages: views must
// not begin with reading all of its tables.
func TestAheadBounded(t *testing.T) {
	m := record(t, "7.2")
	k, err := Attach(context.Background(), m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := k.Symbol("page_offset_base")
	if err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 8)
	if err := k.image.Read(a, word); err != nil {
		t.Fatal(err)
	}
	base := binary.LittleEndian.Uint64(word)
	table := k.root
	for level := k.levels; level > 3; level-- {
		slot := table + mem.Phys(base>>(12+9*(level-1))&511)*8
		if _, err := mem.Gather(context.Background(), m, slot, word); err != nil {
			t.Fatal(err)
		}
		table = mem.Phys(binary.LittleEndian.Uint64(word) & paging.CR3Addr)
	}
	const middle, small = mem.Phys(0x1000_0000), mem.Phys(0x2000_0000)
	for gib := range mem.Phys(8) {
		at := middle + gib*mem.PageSize
		binary.LittleEndian.PutUint64(m.page(table)[(mem.Phys(base>>30&511)+gib)%512*8:], uint64(at)|0x63)
		for i := range mem.Phys(512) {
			binary.LittleEndian.PutUint64(m.page(at)[i*8:], uint64(small+(gib*512+i)*mem.PageSize)|0x63)
		}
	}
	f := newFinder(context.Background(), large{m})
	k.src = large{m}
	if _, err := k.ownTables(f.snap); err != nil {
		t.Fatal(err)
	}
	if n := len(k.tables); n < maxAhead || n > maxAhead+8 || !slices.IsSorted(k.tables) {
		t.Errorf("views begin with %d pages", n)
	}
}
