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
