package mem

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"
)

// tree is memory in which each page holds the numbers of two child pages; page i
// has children 2i+1 and 2i+2 while those are below size.
type tree struct {
	size  int
	calls int
	touch func(call int) // before a call is answered
	flip  map[Phys]byte  // first byte of a page, in place of its own
}

func (r *tree) ReadPhys(_ context.Context, reads []Read) error {
	r.calls++
	if r.touch != nil {
		r.touch(r.calls)
	}
	for i := range reads {
		q := &reads[i]
		var page [PageSize]byte
		n := int(q.Addr.Page() / PageSize)
		for c := range 2 {
			if child := 2*n + 1 + c; child < r.size {
				binary.LittleEndian.PutUint64(page[8*c:], uint64(child))
			}
		}
		if b, ok := r.flip[q.Addr.Page()]; ok {
			page[16] = b
		}
		q.N = copy(q.Buf, page[q.Addr-q.Addr.Page():])
	}
	return nil
}

// grown walks the tree with one walk per node and returns the walks that ran to
// their end, by page.
func grown(t *testing.T, s *Snapshot, moved func(i int)) map[int]int {
	t.Helper()
	todo := []int{0}
	index := map[int]bool{0: true}
	ended := map[int]int{}
	err := s.Grow(func() int { return len(todo) }, func(i int) {
		at := Phys(todo[i]) * PageSize
		s.Guard(at+16, 1)
		for c := range Phys(2) {
			child, err := s.Uint64(at + 8*c)
			if err != nil {
				return
			}
			if child != 0 && !index[int(child)] {
				index[int(child)] = true
				todo = append(todo, int(child))
			}
		}
		s.Guard(at+16, 1)
		ended[todo[i]]++
	}, moved)
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

func TestGrowRounds(t *testing.T) {
	for _, depth := range []int{1, 4, 10} {
		src := &tree{size: 1<<depth - 1}
		s := NewSnapshot(context.Background(), src, Options{Batch: true, Static: true})
		ended := grown(t, s, nil)
		if len(ended) != src.size {
			t.Errorf("depth %d: %d of %d walks ended", depth, len(ended), src.size)
		}
		if got := s.Stats().Rounds; got != depth {
			t.Errorf("depth %d: %d rounds", depth, got)
		}
	}
}

func TestGrowMoved(t *testing.T) {
	src := &tree{size: 15, flip: map[Phys]byte{}}
	// The root's guarded byte changes while its children are being fetched.
	src.touch = func(call int) {
		if call == 2 {
			src.flip[0] = 1
		}
	}
	s := NewSnapshot(context.Background(), src, Options{Batch: true})
	ended := grown(t, s, func(i int) { t.Errorf("walk %d is said to keep moving", i) })
	if len(ended) != 15 {
		t.Errorf("%d of 15 walks ended", len(ended))
	}
	if ended[0] < 2 || s.Stats().Retried != 1 {
		t.Errorf("the root ran to its end %d times, %d retries", ended[0], s.Stats().Retried)
	}

	src.touch = func(call int) { src.flip[0] = byte(call) }
	src.calls = 0
	s = NewSnapshot(context.Background(), src, Options{Batch: true})
	var moving []int
	grown(t, s, func(i int) { moving = append(moving, i) })
	if !slices.Equal(moving, []int{0}) {
		t.Errorf("walks that keep moving: %v", moving)
	}
}
