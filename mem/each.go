package mem

import (
	"bytes"
	"fmt"
	"slices"
)

// Bounds of Each. A walk that needs more passes follows a chain no kernel has;
// one that keeps moving is reported rather than chased.
const (
	maxPasses  = 4096
	maxRetries = 3
)

// A guard is memory a walk's answer stands on: a followed link, an identity, a
// reference count. It is read again when all walks are done.
type guard struct {
	addr Phys
	n    uint8
	was  [8]byte
}

// Guard notes that the walk now running relies on the n bytes (at most 8, within
// one page) at addr being what they were when the snapshot read them.
func (s *Snapshot) Guard(addr Phys, n int) {
	if !s.guarded || s.missed || n > 8 {
		return
	}
	g := guard{addr: addr, n: uint8(n)}
	if m, err := s.Read(addr, g.was[:n]); err != nil || m != n {
		return
	}
	s.guards = append(s.guards, g)
}

// Each runs walk(0) … walk(n-1). A walk is plain sequential code that reads
// through s and writes its result to a place of its own. With Options.Batch, a
// read of a page that is not here yet fails with ErrPending, the walk returns,
// all pages the walks of this pass missed are fetched in one round, and the walks
// that missed any run again from their start. The number of rounds is therefore
// that of the longest chain of pages in one walk, however many walks there are.
//
// When all are done, what they guarded is read again in one round; a walk whose
// memory moved is done anew, and told to moved (which may be nil) when it keeps
// moving. Each must not be called from within a walk.
//
// The error is the source's as a whole, or that walks never came to an end.
func (s *Snapshot) Each(n int, walk func(i int), moved func(i int)) error {
	if s.inPass {
		panic("mem: Each called from within a walk")
	}
	todo := make([]int, n)
	for i := range todo {
		todo[i] = i
	}
	for try := 0; ; try++ {
		owned, err := s.passes(todo, walk)
		if err != nil {
			return err
		}
		if s.opts.Static {
			return nil
		}
		changed, err := s.recheck(owned)
		if err != nil || len(changed) == 0 {
			return err
		}
		if try == maxRetries {
			for _, i := range changed {
				s.stats.Moved++
				if moved != nil {
					moved(i)
				}
			}
			return nil
		}
		s.stats.Retried += len(changed)
		todo = changed
	}
}

// owned is the guards of one walk.
type owned struct {
	walk   int
	guards []guard
}

// passes runs the walks named by todo until none misses a page.
func (s *Snapshot) passes(todo []int, walk func(int)) (all []owned, err error) {
	s.inPass, s.guarded = true, !s.opts.Static
	defer func() { s.inPass, s.guarded = false, false }()
	todo = slices.Clone(todo)
	for pass := 0; len(todo) > 0; pass++ {
		if pass == maxPasses {
			return nil, fmt.Errorf("%d walks did not end within %d rounds", len(todo), maxPasses)
		}
		again := todo[:0]
		for _, i := range todo {
			s.missed, s.guards = false, s.guards[:0]
			walk(i)
			if s.failed != nil {
				return nil, s.failed
			}
			if s.missed {
				again = append(again, i)
			} else if len(s.guards) > 0 {
				all = append(all, owned{i, slices.Clone(s.guards)})
			}
		}
		todo = again
		if err := s.fetchWanted(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// recheck reads all guarded memory again in one round and returns the walks it
// changed under. The pages that changed are fetched anew.
func (s *Snapshot) recheck(all []owned) (changed []int, err error) {
	spans := guardSpans(all)
	if len(spans) == 0 {
		return nil, nil
	}
	reads := make([]Read, len(spans))
	index := make(map[Phys]int, len(spans))
	for i, sp := range spans {
		reads[i] = Read{Addr: sp.Start, Buf: make([]byte, sp.Size)}
		index[sp.Start.Page()] = i
	}
	if err := s.readSource(reads); err != nil {
		return nil, err
	}
	var stale []Phys
	for _, o := range all {
		bad := false
		for _, g := range o.guards {
			r := &reads[index[g.addr.Page()]]
			off := int(g.addr - r.Addr)
			if off+int(g.n) > r.N || !bytes.Equal(r.Buf[off:off+int(g.n)], g.was[:g.n]) {
				bad = true
				stale = append(stale, g.addr.Page())
			}
		}
		if bad {
			changed = append(changed, o.walk)
		}
	}
	if len(stale) == 0 {
		return nil, nil
	}
	slices.Sort(stale)
	s.lastPg = nil
	return changed, s.fetch(slices.Compact(stale))
}

// guardSpans joins the guards of each page into one range, ascending.
func guardSpans(all []owned) []Extent {
	byPage := make(map[Phys]Extent)
	for _, o := range all {
		for _, g := range o.guards {
			end := g.addr + Phys(g.n)
			sp, ok := byPage[g.addr.Page()]
			if !ok {
				byPage[g.addr.Page()] = Extent{g.addr, uint64(g.n)}
				continue
			}
			lo, hi := min(sp.Start, g.addr), max(sp.End(), end)
			byPage[g.addr.Page()] = Extent{lo, uint64(hi - lo)}
		}
	}
	spans := make([]Extent, 0, len(byPage))
	for _, sp := range byPage {
		spans = append(spans, sp)
	}
	slices.SortFunc(spans, func(a, b Extent) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	return spans
}
