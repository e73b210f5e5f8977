package mem

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
)

// Bounds of Each. A walk that needs more passes follows a chain no kernel has;
// one that keeps moving is reported rather than chased.
const (
	maxPasses  = 4096
	maxRetries = 3
)

// pagesPerWalk is what a walk is taken to touch when walks that wait for pages are
// held to as many as their pages fit the cache: a task with its paths and arguments
// touches eight of its own. Walks that touch more still end, in more rounds.
const pagesPerWalk = 8

// A guard is memory a walk's answer stands on: a followed link, an identity, a
// reference count. It is read again after everything the walk read.
type guard struct {
	addr Phys
	n    uint8
	was  [8]byte
}

// Guard notes that the walk now running relies on the n bytes (at most 8, within
// one page) at addr being what they were when the snapshot read them.
func (s *Snapshot) Guard(addr Phys, n int) {
	if !s.guarded || n > 8 {
		return
	}
	pg, err := s.page(addr.Page())
	off := int(addr - addr.Page())
	if err != nil || off+n > pg.n {
		return // reading it says why
	}
	g := guard{addr: addr, n: uint8(n)}
	copy(g.was[:], pg.data[off:off+n])
	s.guards = append(s.guards, g)
}

// Doubt notes that the walk now running came to something that cannot be: an object
// that is gone, or of which parts were read at different times. On a machine that
// runs it is done again, from pages that are all read anew, unless those turn out to
// be as they were.
func (s *Snapshot) Doubt() { s.doubt = true }

// Each runs walk(0) … walk(n-1). A walk is plain sequential code that reads
// through s and writes its result to a place of its own. With Options.Batch, a
// read of a page that is not here yet fails with ErrPending, the walk returns,
// all pages the walks of this pass missed are fetched in one round, and the walks
// that missed any run again from their start. The number of rounds is therefore
// that of the longest chain of pages in one walk, however many walks there are, as
// long as their pages fit the cache; of more walks than that, some wait for others.
//
// What a walk guarded is read again, together with its last pages where there are
// any; a walk whose memory moved is done anew, and told to moved (which may be nil)
// when it keeps moving. So is one that came into doubt (see Doubt). Each must not be called from within a walk.
//
// The error is the source's as a whole, or that walks never came to an end.
func (s *Snapshot) Each(n int, walk func(i int), moved func(i int)) error {
	return s.Grow(func() int { return n }, walk, moved)
}

// Grow is Each for walks that lead to more walks. count tells how many there are;
// it is asked after each walk and must not fall. New walks join the pass that
// found them, so that the rounds of those they came from and their own overlap. A
// walk that is done anew may find other walks than before: those it found first
// have run nevertheless.
func (s *Snapshot) Grow(count func() int, walk func(i int), moved func(i int)) error {
	if s.inPass {
		panic("mem: Each called from within a walk")
	}
	defer func() { s.since = s.base }()
	known := count()
	todo := make([]int, known)
	for i := range todo {
		todo[i] = i
	}
	for try := 0; ; try++ {
		e := eacher{s: s, walk: walk, count: count, known: &known}
		if err := e.run(todo); err != nil {
			return err
		}
		changed, err := e.changed()
		if err != nil {
			return err
		}
		again := changed
		if try == 0 || s.differed { // or else the same memory would give the same again
			again = union(changed, e.doubted)
		}
		if len(again) == 0 {
			return nil
		}
		if err := e.anew(again, try < maxRetries); err != nil {
			return err
		}
		if try == maxRetries {
			for _, i := range again {
				s.stats.Moved++
				if moved != nil {
					moved(i)
				}
			}
			return nil
		}
		s.stats.Retried += len(again)
		todo = again
	}
}

// union returns what is in either of two ascending lists, ascending.
func union(a, b []int) []int {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// lot returns how many walks may wait for pages side by side.
func (s *Snapshot) lot() int {
	if !s.opts.Batch || s.opts.Keep {
		return math.MaxInt
	}
	return max(s.opts.CachePages/pagesPerWalk, 1)
}

// eacher is one try of Each.
type eacher struct {
	s       *Snapshot
	walk    func(i int)
	count   func() int
	known   *int      // walks counted so far
	open    []guarded // of walks that ended, not read again yet
	pending []guarded // of walks that missed a page in the last pass
	moved   []int     // walks whose memory changed
	doubted []int     // walks that came to something that cannot be
	stale   []Phys    // the pages where it did
}

// guarded is the guards of one walk.
type guarded struct {
	walk   int
	guards []guard
}

// run runs the walks named by todo in passes until none misses a page.
func (e *eacher) run(todo []int) error {
	s := e.s
	s.inPass, s.guarded = true, !s.opts.Static
	defer func() { s.inPass, s.guarded = false, false }()
	todo, lot := slices.Clone(todo), s.lot()
	for pass := 0; len(todo) > 0; pass++ {
		if pass == maxPasses {
			return fmt.Errorf("%d walks did not end within %d rounds", len(todo), maxPasses)
		}
		checked := e.pending // in the order of todo
		e.pending = nil
		again := todo[:0]
		for k := 0; k < len(todo); k++ {
			if len(again) == lot {
				again = append(again, todo[k:]...)
				break
			}
			i := todo[k]
			s.missed, s.doubt, s.guards = false, false, s.guards[:0]
			e.walk(i)
			if s.failed != nil {
				return s.failed
			}
			var before []guard
			if len(checked) > 0 && checked[0].walk == i {
				before, checked = checked[0].guards, checked[1:]
			}
			if s.missed {
				again = append(again, i)
				e.pending = append(e.pending, guarded{i, slices.Clone(s.guards)})
			} else if left := without(s.guards, before); len(left) > 0 {
				e.open = append(e.open, guarded{i, left})
			}
			if s.doubt && !s.missed && s.guarded {
				e.doubted = append(e.doubted, i)
			}
			for n := e.count(); *e.known < n; *e.known++ {
				todo = append(todo, *e.known)
			}
		}
		todo = again
		if len(todo) > 0 {
			if err := e.round(s.takeWanted()); err != nil {
				return err
			}
		}
	}
	return nil
}

// without returns a copy of the guards that are not among checked. A walk that is run
// again sets the same ones first, as long as nothing it read was read anew.
func without(guards, checked []guard) []guard {
	same := 0
	for same < min(len(guards), len(checked)) && guards[same] == checked[same] {
		same++
	}
	guards, checked = guards[same:], checked[same:]
	if len(checked) == 0 {
		return slices.Clone(guards)
	}
	known := make(map[guard]struct{}, len(checked))
	for _, g := range checked {
		known[g] = struct{}{}
	}
	return slices.DeleteFunc(slices.Clone(guards), func(g guard) bool {
		_, ok := known[g]
		return ok
	})
}

// guardLot is how many guards are read again at once where rounds are cheap: they
// can lie as far apart as two to a page.
const guardLot = 2048

// round fetches pages and then, in the same call to the source, reads again what
// walks guarded.
func (e *eacher) round(frames []Phys) error {
	all := append(e.open, e.pending...)
	e.open = nil
	var buf []byte
	for len(frames) > 0 || len(all) > 0 {
		lot := all
		if all = nil; !e.s.opts.Batch {
			lot, all = split(lot, guardLot)
		}
		spans := guardSpans(lot)
		reads := make([]Read, 0, len(frames)+len(spans))
		for _, f := range frames {
			reads = append(reads, Read{Addr: f, Buf: e.s.buffer()[:]})
		}
		var size uint64
		for _, sp := range spans {
			size += sp.Size
		}
		if size > uint64(len(buf)) {
			buf = make([]byte, size)
		}
		rest := buf
		for _, sp := range spans {
			reads = append(reads, Read{Addr: sp.Start, Buf: rest[:sp.Size:sp.Size]})
			rest = rest[sp.Size:]
		}
		if err := e.s.readSource(reads); err != nil {
			return err
		}
		for i := range frames {
			e.s.settle(&reads[i])
		}
		e.compare(lot, reads[len(frames):])
		frames = nil
	}
	return nil
}

// split cuts all behind its first n guards. What follows them takes all's place.
func split(all []guarded, n int) (head, rest []guarded) {
	for i, o := range all {
		if len(o.guards) <= n {
			n -= len(o.guards)
			continue
		}
		head = append(slices.Clone(all[:i]), guarded{o.walk, o.guards[:n]})
		all[i].guards = o.guards[n:]
		return head, all[i:]
	}
	return all, nil
}

// compare notes the walks whose guards differ from what was read again.
func (e *eacher) compare(all []guarded, again []Read) {
	index := make(map[Phys]*Read, len(again))
	for i := range again {
		index[again[i].Addr.Page()] = &again[i]
	}
	for _, o := range all {
		for _, g := range o.guards {
			r := index[g.addr.Page()]
			off := int(g.addr - r.Addr)
			if off+int(g.n) > r.N || !bytes.Equal(r.Buf[off:off+int(g.n)], g.was[:g.n]) {
				e.moved = append(e.moved, o.walk)
				e.stale = append(e.stale, g.addr.Page())
			}
		}
	}
}

// changed returns the walks whose memory moved, once all guards have been read
// again.
func (e *eacher) changed() ([]int, error) {
	if err := e.round(nil); err != nil {
		return nil, err
	}
	slices.Sort(e.moved)
	return slices.Compact(e.moved), nil
}

// anew fetches the pages that moved again. When the walks named are to be done again,
// every page they read from now on is read again: other pages than those that were
// guarded may have been read before what moved came to be, and an object put together
// of both would be one that never was. With Options.Batch the pages they read so far
// come in the same round.
func (e *eacher) anew(walks []int, again bool) error {
	s := e.s
	frames := e.stale
	if again {
		s.epoch++
		s.differed = false
		if s.opts.Batch {
			frames = append(frames, e.reads(walks)...)
		}
		s.since = s.epoch
	}
	s.lastPg = nil
	slices.Sort(frames)
	frames = slices.Compact(frames)
	return s.fetch(frames[:min(len(frames), max(s.opts.CachePages/2, 1))])
}

// reads returns the pages that walks read, by running them on what is here.
func (e *eacher) reads(walks []int) []Phys {
	s := e.s
	s.lastPg, s.inPass, s.touched = nil, true, make(map[Phys]struct{})
	defer func() { s.inPass, s.touched = false, nil }()
	for _, i := range walks {
		e.walk(i)
	}
	return slices.Collect(maps.Keys(s.touched))
}

// guardSpans joins the guards of each page into one range, ascending.
func guardSpans(all []guarded) []Extent {
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
