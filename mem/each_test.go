package mem

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

// ram is memory that can be made to move and to fail.
type ram struct {
	data   []byte
	rounds int
	before func(round int) // called before each round is answered
	err    error
}

func (m *ram) ReadPhys(_ context.Context, reads []Read) error {
	m.rounds++
	if m.before != nil {
		m.before(m.rounds)
	}
	if m.err != nil {
		return m.err
	}
	for i := range reads {
		r := &reads[i]
		r.N, r.Err = 0, nil
		if r.Addr < Phys(len(m.data)) {
			r.N = copy(r.Buf, m.data[r.Addr:])
		}
		if r.N < len(r.Buf) {
			r.Err = &Fault{LayerPhysical, uint64(r.Addr) + uint64(r.N), ErrNotRAM}
		}
	}
	return nil
}

func (m *ram) put(a Phys, v uint64) { binary.LittleEndian.PutUint64(m.data[a:], v) }

// chain writes n linked words, each in a page of its own from page first on, and
// returns the address of the first.
func (m *ram) chain(first, n int) Phys {
	for i := range n {
		next := uint64((first + i + 1) * PageSize)
		if i == n-1 {
			next = 0
		}
		m.put(Phys((first+i)*PageSize), next)
	}
	return Phys(first * PageSize)
}

// follow counts the links from a on.
func follow(s *Snapshot, a Phys) (n int, err error) {
	for a != 0 {
		s.Guard(a, 8)
		v, err := s.Uint64(a)
		if err != nil {
			return n, err
		}
		n, a = n+1, Phys(v)
	}
	return n, nil
}

// TestEachRounds shows that rounds are those of the longest walk, however many
// walks there are.
func TestEachRounds(t *testing.T) {
	for _, walks := range []int{1, 10, 100} {
		for _, batch := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d walks, batch %v", walks, batch), func(t *testing.T) {
				const length = 7
				m := &ram{data: make([]byte, (1+walks*length)*PageSize)}
				for i := range walks {
					m.chain(1+i*length, length)
				}
				s := NewSnapshot(context.Background(), m, Options{Batch: batch})
				got := make([]int, walks)
				err := s.Each(walks, func(i int) { got[i], _ = follow(s, Phys((1+i*length)*PageSize)) }, nil)
				if err != nil {
					t.Fatal(err)
				}
				for i, n := range got {
					if n != length {
						t.Errorf("walk %d saw %d links of %d", i, n, length)
					}
				}
				// One more for what was guarded in the last page.
				if batch && m.rounds != length+1 {
					t.Errorf("%d rounds for chains of %d pages", m.rounds, length)
				}
				if st := s.Stats(); st.Pages != walks*length || st.Rounds != m.rounds {
					t.Errorf("stats %+v for %d pages in %d rounds", st, walks*length, m.rounds)
				}
			})
		}
	}
}

// TestEachMoved changes a link under a walk: once, so that it is read again, and
// for ever, so that it is reported.
func TestEachMoved(t *testing.T) {
	for _, batch := range []bool{false, true} {
		for _, always := range []bool{false, true} {
			t.Run(fmt.Sprintf("batch %v, always %v", batch, always), func(t *testing.T) {
				m := &ram{data: make([]byte, 32*PageSize)}
				short, long := m.chain(1, 3), m.chain(10, 5)
				changes := 0
				m.before = func(round int) {
					if round > 2 && (always || changes == 0) {
						changes++
						m.put(PageSize, uint64(long)+uint64(changes%2)*PageSize)
					}
				}
				s := NewSnapshot(context.Background(), m, Options{Batch: batch})
				var lens [2]int
				var moved []int
				starts := [2]Phys{short, Phys(20 * PageSize)}
				m.chain(20, 4)
				err := s.Each(2, func(i int) { lens[i], _ = follow(s, starts[i]) }, func(i int) { moved = append(moved, i) })
				if err != nil {
					t.Fatal(err)
				}
				if lens[1] != 4 {
					t.Errorf("the walk whose memory stood still saw %d links of 4", lens[1])
				}
				switch {
				case always && (len(moved) != 1 || moved[0] != 0):
					t.Errorf("moved: %v, want walk 0", moved)
				case !always && len(moved) != 0:
					t.Errorf("moved: %v after one change", moved)
				case !always && lens[0] != 5 && lens[0] != 6:
					t.Errorf("%d links: not the chain as it is now", lens[0])
				}
				if s.Stats().Retried == 0 {
					t.Error("nothing was read again")
				}
			})
		}
	}
}

func TestEachSourceFails(t *testing.T) {
	m := &ram{data: make([]byte, 8*PageSize)}
	m.chain(1, 5)
	m.before = func(round int) {
		if round == 3 {
			m.err = ErrGone
		}
	}
	s := NewSnapshot(context.Background(), m, Options{Batch: true})
	if err := s.Each(1, func(int) { follow(s, PageSize) }, nil); !errors.Is(err, ErrGone) {
		t.Errorf("each: %v", err)
	}
	m.err, m.before = nil, nil
	if _, err := s.Uint64(0); !errors.Is(err, ErrGone) {
		t.Errorf("a snapshot whose source failed reads on: %v", err)
	}
}

// TestEachEndless bounds walks that always ask for one page more.
func TestEachEndless(t *testing.T) {
	m := &ram{data: make([]byte, (maxPasses+10)*PageSize)}
	s := NewSnapshot(context.Background(), m, Options{Batch: true})
	next := Phys(0)
	err := s.Each(1, func(int) {
		next += PageSize
		s.Uint64(next)
	}, nil)
	if err == nil {
		t.Error("a walk without end ended")
	}
}

func TestEachCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	m := &ram{data: make([]byte, 8*PageSize)}
	m.chain(1, 5)
	m.before = func(round int) {
		if round == 2 {
			cancel()
		}
	}
	s := NewSnapshot(ctx, m, Options{Batch: true})
	if err := s.Each(1, func(int) { follow(s, PageSize) }, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("each: %v", err)
	}
}

// TestEachLots runs more walks than the cache holds the pages of: in more rounds,
// but not in as many as there are walks.
func TestEachLots(t *testing.T) {
	const walks, length = 200, 3
	m := &ram{data: make([]byte, (1+walks*length)*PageSize)}
	for i := range walks {
		m.chain(1+i*length, length)
	}
	s := NewSnapshot(context.Background(), m, Options{Batch: true, CachePages: 80 * length})
	sum := 0
	err := s.Each(walks, func(i int) {
		if n, err := follow(s, Phys((1+i*length)*PageSize)); err == nil {
			sum += n
		}
	}, nil)
	if err != nil || sum != walks*length {
		t.Errorf("%d links of %d, %v", sum, walks*length, err)
	}
	if m.rounds > walks/5 {
		t.Errorf("%d rounds", m.rounds)
	}
}
