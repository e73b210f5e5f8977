package mem

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
)

func randomRAM(pages int) *ram {
	m := &ram{data: make([]byte, pages*PageSize)}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range m.data {
		m.data[i] = byte(r.Uint32())
	}
	return m
}

// TestSnapshotRead reads random ranges through a cache much smaller than memory.
func TestSnapshotRead(t *testing.T) {
	m := randomRAM(64)
	m.data = m.data[:len(m.data)-100] // the last page is short
	s := NewSnapshot(context.Background(), m, Options{CachePages: 8})
	r := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		a, n := r.IntN(len(m.data)+200), r.IntN(3*PageSize)
		buf := make([]byte, n)
		got, err := s.Read(Phys(a), buf)
		want := 0
		if a < len(m.data) {
			want = min(n, len(m.data)-a)
		}
		if got != want || (err == nil) != (want == n) {
			t.Fatalf("read %d at %#x: %d bytes, %v; want %d", n, a, got, err, want)
		}
		if err != nil && !errors.Is(err, ErrNotRAM) {
			t.Fatalf("read %d at %#x: %v", n, a, err)
		}
		if a < len(m.data) && !bytes.Equal(buf[:got], m.data[a:a+got]) {
			t.Fatalf("read %d at %#x: wrong bytes", n, a)
		}
	}
	if len(s.ring) > 8 {
		t.Errorf("%d pages kept of at most 8", len(s.ring))
	}
	for _, p := range s.Pages() {
		if p.Err == nil && p.Hash == 0 {
			t.Errorf("%v has no hash", p.Addr)
		}
	}
}

// TestSnapshotStable shows that a page stays as first read while it is cached, and
// that a change is noticed when it had to be dropped.
func TestSnapshotStable(t *testing.T) {
	m := randomRAM(32)
	s := NewSnapshot(context.Background(), m, Options{CachePages: 4})
	first, err := s.Uint64(0)
	if err != nil {
		t.Fatal(err)
	}
	m.put(0, ^first)
	if again, _ := s.Uint64(0); again != first {
		t.Error("a cached page changed within a snapshot")
	}
	for p := Phys(1); p < 32; p++ {
		s.Uint64(p * PageSize)
	}
	if again, _ := s.Uint64(0); again != ^first {
		t.Error("the page was not dropped: the test shows nothing")
	}
	if s.Stats().Changed != 1 {
		t.Errorf("%d pages changed, want 1", s.Stats().Changed)
	}
}

// TestSnapshotKeep keeps every page while recording.
func TestSnapshotKeep(t *testing.T) {
	m := randomRAM(32)
	s := NewSnapshot(context.Background(), m, Options{CachePages: 4, Keep: true})
	for p := range Phys(32) {
		s.Uint64(p * PageSize)
	}
	for i, p := range s.Pages() {
		if !bytes.Equal(p.Data, m.data[i*PageSize:(i+1)*PageSize]) {
			t.Errorf("%v was not kept", p.Addr)
		}
	}
}

func TestLayout(t *testing.T) {
	l, err := NewLayout(Extent{0x3000, 0x1000}, Extent{0, 0x2000}, Extent{0x2000, 0x1000}, Extent{0x9000, 0})
	if err != nil || len(l) != 1 || l[0] != (Extent{0, 0x4000}) {
		t.Errorf("joined: %v, %v", l, err)
	}
	for _, bad := range [][]Extent{
		{{0, 0x2000}, {0x1000, 0x1000}},
		{{0x1000, ^uint64(0)}},
		{{0, 0x1000}, {0, 0x1000}},
	} {
		if l, err := NewLayout(bad...); err == nil {
			t.Errorf("%v makes the layout %v", bad, l)
		}
	}
	l, _ = NewLayout(Extent{0x1000, 0x1000}, Extent{0x4000, 0x1000})
	for a, want := range map[Phys]bool{0: false, 0x1000: true, 0x1fff: true, 0x2000: false, 0x4fff: true, 0x5000: false} {
		if _, ok := l.Find(a); ok != want {
			t.Errorf("find %v: %v", a, ok)
		}
	}
	if l.Size() != 0x2000 {
		t.Errorf("size %#x", l.Size())
	}
}
