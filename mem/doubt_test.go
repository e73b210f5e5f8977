package mem

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// TestEachDoubt has a walk follow a link that another walk's page held when what it
// leads to was still something else: it is done again from memory read anew.
func TestEachDoubt(t *testing.T) {
	const link, object = 1 * PageSize, 2 * PageSize
	for _, batch := range []bool{false, true} {
		for _, moves := range []bool{true, false} {
			t.Run(fmt.Sprintf("batch %v, moves %v", batch, moves), func(t *testing.T) {
				m := &ram{data: make([]byte, 4*PageSize)}
				m.put(object, 7) // what no object can be
				m.put(link, object)
				s := NewSnapshot(context.Background(), m, Options{Batch: batch})
				if v, err := s.Uint64(object); err != nil || v != 7 {
					t.Fatal(v, err)
				}
				if moves {
					m.put(object, 1)
				}
				var got uint64
				ran := 0
				err := s.Each(1, func(int) {
					at, err := s.Uint64(link)
					if err != nil {
						return
					}
					ran++
					if got, err = s.Uint64(Phys(at)); err == nil && got != 1 {
						s.Doubt()
					}
				}, func(int) { t.Error("said to keep moving") })
				if err != nil {
					t.Fatal(err)
				}
				if moves && got != 1 {
					t.Errorf("the object is %d, 1 is there", got)
				}
				if !moves && (got != 7 || s.Stats().Retried != 1) {
					t.Errorf("the object is %d after %d retries, want 7 after one", got, s.Stats().Retried)
				}
			})
		}
	}
}

// TestEachDoubtStatic shows that memory that cannot change is not read again.
func TestEachDoubtStatic(t *testing.T) {
	m := &ram{data: make([]byte, PageSize)}
	s := NewSnapshot(context.Background(), m, Options{Static: true})
	ran := 0
	if err := s.Each(1, func(int) { ran++; s.Doubt() }, nil); err != nil || ran != 1 {
		t.Errorf("ran %d times, %v", ran, err)
	}
}

// TestReadsAreBounded reads for ever.
func TestReadsAreBounded(t *testing.T) {
	m := &ram{data: make([]byte, PageSize)}
	s := NewSnapshot(context.Background(), m, Options{})
	s.reads = maxReads - 10
	var err error
	for range 20 {
		if _, err = s.Uint64(8); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrEndless) || !errors.Is(s.Err(), ErrEndless) {
		t.Errorf("%v, %v", err, s.Err())
	}
}
