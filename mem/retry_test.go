package mem

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
)

// TestEachRetryIsNew replaces an object that spans two pages while it is read: the
// second page, which nothing guards, was read before by another walk. The object
// must be the old one or the new one, never the head of one with the tail of the
// other.
func TestEachRetryIsNew(t *testing.T) {
	for _, batch := range []bool{false, true} {
		t.Run(fmt.Sprintf("batch %v", batch), func(t *testing.T) {
			const link, head, tail = 1 * PageSize, 2 * PageSize, 3 * PageSize
			m := &ram{data: make([]byte, 8*PageSize)}
			m.put(link, head)
			m.put(head, 1)
			m.put(tail, 1)
			m.before = func(round int) {
				if round == 2 { // both pages hold the next object from here on
					m.put(head, 2)
					m.put(tail, 2)
				}
			}
			s := NewSnapshot(context.Background(), m, Options{Batch: batch})
			if v, err := s.Uint64(tail); err != nil || v != 1 { // a neighbour's read
				t.Fatal(v, err)
			}
			m.put(head, 1)
			if v, err := s.Uint64(head); err != nil || v != 2 {
				t.Fatal(v, err)
			}
			m.put(head, 3)
			m.put(tail, 3)
			var id, data uint64
			err := s.Each(1, func(int) {
				at, _ := s.Uint64(link)
				s.Guard(Phys(at), 8)
				id, _ = s.Uint64(Phys(at))
				data, _ = s.Uint64(Phys(at) + PageSize)
			}, func(int) { t.Error("said to keep moving") })
			if err != nil || id != data {
				t.Errorf("head of object %d, tail of object %d, %v", id, data, err)
			}
			if s.Stats().Retried != 1 {
				t.Errorf("%d retries: the test shows nothing", s.Stats().Retried)
			}
		})
	}
}

// TestEachRetryRounds shows that walks done anew do not follow their chains a page
// per round again.
func TestEachRetryRounds(t *testing.T) {
	const length = 12
	m := &ram{data: make([]byte, (length+2)*PageSize)}
	first := m.chain(1, length)
	m.before = func(round int) {
		if round == length { // the first page's second word, which the walk guards
			binary.LittleEndian.PutUint64(m.data[first+8:], 7)
		}
	}
	s := NewSnapshot(context.Background(), m, Options{Batch: true})
	var n int
	err := s.Each(1, func(int) {
		s.Guard(first+8, 8)
		n, _ = follow(s, first)
	}, func(int) { t.Error("said to keep moving") })
	if err != nil || n != length {
		t.Fatalf("%d links, %v", n, err)
	}
	if got := s.Stats().Rounds; got > length+4 || s.Stats().Retried != 1 {
		t.Errorf("%d rounds, %d retries, for one chain of %d pages read twice", got, s.Stats().Retried, length)
	}
}

// apart is endless memory that counts the bytes asked for in one call.
type apart struct{ most, small int }

func (a *apart) ReadPhys(_ context.Context, reads []Read) error {
	n := 0
	for i := range reads {
		clear(reads[i].Buf)
		reads[i].N = len(reads[i].Buf)
		if reads[i].N < PageSize {
			n += reads[i].N
		}
	}
	a.most, a.small = max(a.most, n), a.small+n
	return nil
}

// TestEachGuardMemory guards both ends of very many pages: reading them again must
// not take as much memory as those have.
func TestEachGuardMemory(t *testing.T) {
	const walks = 20_000
	src := &apart{}
	s := NewSnapshot(context.Background(), src, Options{CachePages: 64})
	err := s.Each(walks, func(i int) {
		at := Phys(i) * PageSize
		s.Guard(at, 8)
		s.Guard(at+PageSize-16, 8)
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if src.small != walks*(PageSize-8) {
		t.Errorf("%d bytes read again", src.small)
	}
	if src.most > 4<<20 {
		t.Errorf("%d bytes at once", src.most)
	}
}

// TestEachGuards sets many guards in one walk that is run many times.
func TestEachGuards(t *testing.T) {
	const pages, each = 40, 500
	m := &ram{data: make([]byte, (pages+1)*PageSize)}
	s := NewSnapshot(context.Background(), m, Options{Batch: true})
	err := s.Each(1, func(int) {
		for p := Phys(0); p < pages; p++ {
			for w := range Phys(each) {
				s.Guard(p*PageSize+w*8, 8)
			}
			if _, err := s.Uint64(p * PageSize); err != nil {
				return
			}
		}
	}, func(int) { t.Error("said to keep moving") })
	if err != nil || m.rounds != pages+1 {
		t.Errorf("%d rounds, %v", m.rounds, err)
	}
}
