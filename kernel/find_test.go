package kernel

import (
	"context"
	"slices"
	"testing"

	"github.com/umbravm/umbra/mem"
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
