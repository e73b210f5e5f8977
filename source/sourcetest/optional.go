package sourcetest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// testRegisters looks at a source's registers. A source that could know them but
// does not, for this machine, must say so with an error.
func testRegisters(t *testing.T, s source.Source, _ Truth) {
	rr, ok := s.(source.RegisterReader)
	if !ok {
		return
	}
	regs, err := rr.Registers(t.Context())
	if (len(regs) == 0) == (err == nil) {
		t.Fatalf("%d CPUs' registers and error %v", len(regs), err)
	}
	if n := s.Info().CPUs; err == nil && n != 0 && len(regs) != n {
		t.Errorf("registers of %d CPUs, the machine has %d", len(regs), n)
	}
	for i, r := range regs {
		if r.CPU != i {
			t.Errorf("entry %d is CPU %d", i, r.CPU)
		}
		if r.CPL < 0 || r.CPL > 3 {
			t.Errorf("CPU %d: CPL %d", i, r.CPL)
		}
	}
}

// testPause pauses and resumes, and pauses what is paused already.
func testPause(t *testing.T, s source.Source, _ Truth) {
	p, ok := s.(source.Pauser)
	if !ok {
		return
	}
	before, err := p.Paused(t.Context())
	if err != nil {
		t.Fatalf("Paused: %v", err)
	}
	resume, err := p.Pause(t.Context())
	if err != nil {
		t.Fatalf("Pause: %v", err)
	}
	if now, err := p.Paused(t.Context()); err != nil || !now {
		t.Errorf("after Pause: paused %v, %v", now, err)
	}
	one(t, s, &mem.Read{Addr: s.Info().Layout[0].Start, Buf: make([]byte, 64)})
	d, err := resume()
	if err != nil {
		t.Fatalf("resume: %v", err)
	}
	if (d == 0) != before {
		t.Errorf("the machine was paused before: %v; it stood still for %v by our doing", before, d)
	}
	if now, err := p.Paused(t.Context()); err != nil || now != before {
		t.Errorf("after resume: paused %v, %v; before all this %v", now, err, before)
	}
	if again, err := resume(); err != nil || again != d {
		t.Errorf("second resume: %v, %v; want the first one's answer %v", again, err, d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Pause(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Pause with a cancelled context: %v", err)
	}
	if now, err := p.Paused(t.Context()); err != nil || now != before {
		t.Errorf("after a cancelled Pause: paused %v, %v; before %v", now, err, before)
	}
}

func testRefresh(t *testing.T, s source.Source, truth Truth) {
	r, ok := s.(source.Refresher)
	if !ok {
		return
	}
	before := s.Info()
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatalf("Refresh: %v", err)
	}
	if after := s.Info(); !equal(after.Layout, before.Layout) || after.Name != before.Name {
		t.Errorf("nothing changed, yet %+v became %+v", before, after)
	}
	testKnown(t, s, truth)
}

// testHoles walks all data: it advances, stays inside RAM, finds the known content,
// and what it leaves out reads as zeros.
func testHoles(t *testing.T, s source.Source, truth Truth) {
	h, ok := s.(source.HoleFinder)
	if !ok {
		return
	}
	const maxRuns = 1 << 20
	var runs mem.Layout
	l := s.Info().Layout
	for at, n := mem.Phys(0), 0; ; n++ {
		e, ok := h.Data(at)
		if !ok {
			break
		}
		in, found := l.Find(e.Start)
		switch {
		case e.Size == 0 || e.Start < at:
			t.Fatalf("data after %v: %v, %#x bytes", at, e.Start, e.Size)
		case !found || e.Size > uint64(in.End()-e.Start):
			t.Fatalf("data at %v, %#x bytes, is not inside one extent of RAM", e.Start, e.Size)
		case n == maxRuns:
			t.Fatalf("more than %d runs of data", maxRuns)
		}
		if mid, ok := h.Data(e.Start + mem.Phys(e.Size/2)); truth.Still && (!ok || mid.Start != e.Start+mem.Phys(e.Size/2)) {
			t.Fatalf("data at %v, %#x bytes, but asked from its middle on it starts at %v, %v", e.Start, e.Size, mid.Start, ok)
		}
		runs = append(runs, e)
		at = e.End()
	}
	for _, c := range truth.Known {
		if _, ok := runs.Find(c.Addr); !ok && !zero(c.Data) {
			t.Errorf("content at %v is in no run of data", c.Addr)
		}
	}
	if truth.Still {
		holesAreZero(t, s, runs)
	}
}

// holesAreZero reads up to 64 MiB of what lies between the runs.
func holesAreZero(t *testing.T, s source.Source, runs mem.Layout) {
	buf := make([]byte, 1<<20)
	budget := 64
	for _, e := range s.Info().Layout {
		for at := e.Start; at < e.End() && budget > 0; {
			n := uint64(e.End() - at)
			if run, ok := runs.Find(at); ok {
				at = run.End()
				continue
			}
			for _, run := range runs {
				if run.Start > at {
					n = min(n, uint64(run.Start-at))
					break
				}
			}
			r := mem.Read{Addr: at, Buf: buf[:min(n, uint64(len(buf)))]}
			one(t, s, &r)
			whole(t, &r)
			if !zero(r.Buf) {
				t.Fatalf("the hole at %v, %#x bytes, is not all zeros", at, n)
			}
			budget--
			at += mem.Phys(n)
		}
	}
}

func zero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
