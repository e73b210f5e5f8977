// Package sourcetest is the conformance suite of package source: what every way to
// reach a machine's memory must do, whatever stands behind it.
package sourcetest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// Truth is what is known of the machine from elsewhere.
type Truth struct {
	// Layout is where the machine has RAM; nil when nothing else tells.
	Layout mem.Layout

	// Known is content of RAM that must be read exactly so.
	Known []Chunk

	// Still says that memory does not change during the test: the same read twice
	// must give the same bytes.
	Still bool
}

// Chunk is a piece of RAM.
type Chunk struct {
	Addr mem.Phys
	Data []byte
}

// Test runs the suite. open attaches to the machine anew for each part and leaves
// closing to the suite; closing twice is the source's to bear.
func Test(t *testing.T, open func(t *testing.T) (source.Source, Truth)) {
	parts := []struct {
		name string
		run  func(*testing.T, source.Source, Truth)
	}{
		{"info", testInfo},
		{"known content", testKnown},
		{"edges", testEdges},
		{"beyond the end", testBeyond},
		{"outside RAM", testOutside},
		{"zero length", testEmpty},
		{"many ranges", testMany},
		{"overlapping ranges", testOverlap},
		{"large read", testLarge},
		{"cancelled", testCancelled},
		{"buffers not retained", testRetained},
		{"registers", testRegisters},
		{"pause", testPause},
		{"refresh", testRefresh},
		{"holes", testHoles},
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			s, truth := open(t)
			defer s.Close()
			if len(s.Info().Layout) == 0 {
				t.Fatal("the source has no RAM")
			}
			p.run(t, s, truth)
		})
	}
	t.Run("closed", func(t *testing.T) { testClosed(t, open) })
}

func testInfo(t *testing.T, s source.Source, truth Truth) {
	info := s.Info()
	if info.Kind == "" || info.Name == "" || info.Detail == "" {
		t.Errorf("kind %q, name %q, detail %q: none may be empty", info.Kind, info.Name, info.Detail)
	}
	if info.CPUs < 0 {
		t.Errorf("%d CPUs", info.CPUs)
	}
	if again, err := mem.NewLayout(info.Layout...); err != nil || !equal(again, info.Layout) {
		t.Errorf("layout %v is not as NewLayout makes one: %v, %v", info.Layout, again, err)
	}
	if truth.Layout != nil && !equal(info.Layout, truth.Layout) {
		t.Errorf("layout %v, want %v", info.Layout, truth.Layout)
	}
}

func equal(a, b mem.Layout) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func testKnown(t *testing.T, s source.Source, truth Truth) {
	reads := make([]mem.Read, len(truth.Known))
	for i, c := range truth.Known {
		reads[i] = mem.Read{Addr: c.Addr, Buf: make([]byte, len(c.Data))}
	}
	must(t, s, reads)
	for i, r := range reads {
		whole(t, &r)
		if !bytes.Equal(r.Buf, truth.Known[i].Data) {
			t.Errorf("%v: %d bytes differ from what is there, first % x, want % x",
				r.Addr, len(r.Buf), head(r.Buf), head(truth.Known[i].Data))
		}
	}
}

func head(b []byte) []byte { return b[:min(16, len(b))] }

// testEdges reads the first and the last bytes of every extent.
func testEdges(t *testing.T, s source.Source, _ Truth) {
	for _, e := range s.Info().Layout {
		n := min(e.Size, 3*mem.PageSize+7)
		for _, at := range []mem.Phys{e.Start, e.End() - mem.Phys(n), e.End() - 1} {
			r := mem.Read{Addr: at, Buf: make([]byte, min(n, uint64(e.End()-at)))}
			one(t, s, &r)
			whole(t, &r)
		}
	}
}

// testBeyond reads across the end of each extent: the bytes before the end are
// valid, and the fault names the first address that is not RAM.
func testBeyond(t *testing.T, s source.Source, truth Truth) {
	for _, e := range s.Info().Layout {
		n := int(min(e.Size, 5000))
		r := mem.Read{Addr: e.End() - mem.Phys(n), Buf: make([]byte, n+5000)}
		one(t, s, &r)
		if r.N != n {
			t.Errorf("across the end at %v: %d bytes, want %d", e.End(), r.N, n)
			continue
		}
		wantFault(t, r.Err, e.End())
		if truth.Still {
			in := mem.Read{Addr: r.Addr, Buf: make([]byte, n)}
			one(t, s, &in)
			if !bytes.Equal(in.Buf, r.Buf[:n]) {
				t.Errorf("across the end at %v: other bytes than a read that ends there", e.End())
			}
		}
	}
}

func testOutside(t *testing.T, s source.Source, _ Truth) {
	l := s.Info().Layout
	at := []mem.Phys{l[len(l)-1].End(), l[len(l)-1].End() + 1<<40, 1<<52 - 8, 1<<63 - 4, ^mem.Phys(0), ^mem.Phys(0) - 3}
	for i := range l[1:] {
		at = append(at, l[i].End(), l[i+1].Start-1)
	}
	for _, a := range at {
		if _, ok := l.Find(a); ok {
			continue
		}
		r := mem.Read{Addr: a, Buf: make([]byte, 16)}
		one(t, s, &r)
		if r.N != 0 {
			t.Errorf("%v is not RAM, yet %d bytes were read", a, r.N)
		}
		wantFault(t, r.Err, a)
	}
}

func testEmpty(t *testing.T, s source.Source, _ Truth) {
	must(t, s, nil)
	l := s.Info().Layout
	for _, a := range []mem.Phys{l[0].Start, l[len(l)-1].End(), ^mem.Phys(0)} {
		r := mem.Read{Addr: a, N: 7, Err: errors.New("left over")}
		one(t, s, &r)
		if r.N != 0 || r.Err != nil {
			t.Errorf("no bytes at %v: N %d, error %v", a, r.N, r.Err)
		}
	}
}

// testMany compares one call of many ranges, good and bad mixed, with one call
// each.
func testMany(t *testing.T, s source.Source, truth Truth) {
	const count = 3000 // more than any system call takes at once
	l := s.Info().Layout
	reads := make([]mem.Read, count)
	for i := range reads {
		e := l[i%len(l)]
		at := e.Start + mem.Phys(uint64(i)*2654435761%e.Size)
		if i%50 == 49 {
			at = l[len(l)-1].End() + mem.Phys(i)
		}
		reads[i] = mem.Read{Addr: at, Buf: make([]byte, 1+i*37%600)}
	}
	must(t, s, reads)
	for i := range reads {
		r := &reads[i]
		if (r.N < len(r.Buf)) != (r.Err != nil) {
			t.Fatalf("%v: %d of %d bytes and error %v", r.Addr, r.N, len(r.Buf), r.Err)
		}
		single := mem.Read{Addr: r.Addr, Buf: make([]byte, len(r.Buf))}
		one(t, s, &single)
		if single.N != r.N || (single.Err == nil) != (r.Err == nil) {
			t.Fatalf("%v: together %d bytes, %v; alone %d bytes, %v", r.Addr, r.N, r.Err, single.N, single.Err)
		}
		if truth.Still && !bytes.Equal(single.Buf[:r.N], r.Buf[:r.N]) {
			t.Fatalf("%v: together and alone read differently", r.Addr)
		}
	}
}

func testOverlap(t *testing.T, s source.Source, truth Truth) {
	e := s.Info().Layout[0]
	if e.Size < 3*mem.PageSize {
		t.Fatalf("first extent has %#x bytes only", e.Size)
	}
	reads := []mem.Read{
		{Addr: e.Start, Buf: make([]byte, 2*mem.PageSize)},
		{Addr: e.Start + 100, Buf: make([]byte, mem.PageSize)},
		{Addr: e.Start, Buf: make([]byte, 2*mem.PageSize)},
	}
	must(t, s, reads)
	for i := range reads {
		whole(t, &reads[i])
	}
	if truth.Still && (!bytes.Equal(reads[0].Buf, reads[2].Buf) || !bytes.Equal(reads[0].Buf[100:100+mem.PageSize], reads[1].Buf)) {
		t.Error("overlapping ranges read differently")
	}
}

// testLarge reads 24 MiB, or the whole extent, in one range and compares it with
// reads page by page.
func testLarge(t *testing.T, s source.Source, truth Truth) {
	e := s.Info().Layout[0]
	for _, x := range s.Info().Layout {
		if x.Size > e.Size {
			e = x
		}
	}
	r := mem.Read{Addr: e.Start, Buf: make([]byte, min(e.Size, 24<<20))}
	one(t, s, &r)
	whole(t, &r)
	if !truth.Still {
		return
	}
	reads := make([]mem.Read, len(r.Buf)/mem.PageSize)
	for i := range reads {
		reads[i] = mem.Read{Addr: e.Start + mem.Phys(i*mem.PageSize), Buf: make([]byte, mem.PageSize)}
	}
	must(t, s, reads)
	for i := range reads {
		whole(t, &reads[i])
		if !bytes.Equal(reads[i].Buf, r.Buf[i*mem.PageSize:(i+1)*mem.PageSize]) {
			t.Fatalf("%v reads differently by itself", reads[i].Addr)
		}
	}
}

func testCancelled(t *testing.T, s source.Source, _ Truth) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := []mem.Read{{Addr: s.Info().Layout[0].Start, Buf: make([]byte, 64)}}
	if err := s.ReadPhys(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
	must(t, s, r) // and the source is still good
	whole(t, &r[0])
}

// testRetained overwrites a buffer after the call and looks that later calls
// neither see nor change it.
func testRetained(t *testing.T, s source.Source, truth Truth) {
	at := s.Info().Layout[0].Start
	first := mem.Read{Addr: at, Buf: make([]byte, 256)}
	one(t, s, &first)
	was := bytes.Clone(first.Buf)
	for i := range first.Buf {
		first.Buf[i] ^= 0xff
	}
	mine := bytes.Clone(first.Buf)
	second := mem.Read{Addr: at, Buf: make([]byte, 256)}
	one(t, s, &second)
	if !bytes.Equal(first.Buf, mine) {
		t.Error("a later call wrote into an earlier call's buffer")
	}
	if truth.Still && !bytes.Equal(second.Buf, was) {
		t.Error("a later call sees what was written into an earlier call's buffer")
	}
}

func testClosed(t *testing.T, open func(t *testing.T) (source.Source, Truth)) {
	s, _ := open(t)
	at := s.Info().Layout[0].Start
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := s.ReadPhys(t.Context(), []mem.Read{{Addr: at, Buf: make([]byte, 8)}}); err == nil {
		t.Error("a closed source can be read")
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// must reads and fails the test when the call as a whole fails.
func must(t *testing.T, s source.Source, reads []mem.Read) {
	t.Helper()
	if err := s.ReadPhys(t.Context(), reads); err != nil {
		t.Fatalf("ReadPhys of %d ranges: %v", len(reads), err)
	}
}

// one makes the read *r by itself.
func one(t *testing.T, s source.Source, r *mem.Read) {
	t.Helper()
	reads := []mem.Read{*r}
	must(t, s, reads)
	*r = reads[0]
}

func whole(t *testing.T, r *mem.Read) {
	t.Helper()
	if r.N != len(r.Buf) || r.Err != nil {
		t.Errorf("%v: %d of %d bytes, %v", r.Addr, r.N, len(r.Buf), r.Err)
	}
}

func wantFault(t *testing.T, err error, at mem.Phys) {
	t.Helper()
	var f *mem.Fault
	if !errors.As(err, &f) || !errors.Is(err, mem.ErrNotRAM) {
		t.Errorf("error %v, want a fault for what is not RAM", err)
		return
	}
	if f.Layer != mem.LayerPhysical || f.Addr != uint64(at) {
		t.Errorf("fault in %v at %#x, want physical memory at %v", f.Layer, f.Addr, at)
	}
}
