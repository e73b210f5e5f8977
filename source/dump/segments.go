package dump

import (
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/umbravm/umbra/mem"
)

// segment is a run of memory that stands in the file as it stood in the machine.
type segment struct {
	start mem.Phys
	size  uint64
	off   uint64 // of its first byte in the file
}

func (g segment) end() mem.Phys { return g.start + mem.Phys(g.size) }

// from returns g without its first n bytes, n < g.size.
func (g segment) from(n uint64) segment {
	return segment{start: g.start + mem.Phys(n), size: g.size - n, off: g.off + n}
}

// check refuses a run whose ends cannot be computed with.
func (g segment) check() error {
	if err := checkExtent(mem.Extent{Start: g.start, Size: g.size}); err != nil {
		return err
	}
	if g.off > math.MaxInt64 || g.size > math.MaxInt64-g.off {
		return fmt.Errorf("%w: memory at %v lies at offset %#x of the file", ErrFormat, g.start, g.off)
	}
	return nil
}

// checkExtent refuses a run that is empty or reaches the last address, behind
// which an end cannot be named.
func checkExtent(e mem.Extent) error {
	if _, ok := e.Start.Add(e.Size); !ok || e.Size == 0 {
		return fmt.Errorf("%w: memory at %v cannot have %#x bytes", ErrFormat, e.Start, e.Size)
	}
	return nil
}

// segments is an image made of uncompressed runs: ascending, not overlapping.
type segments struct {
	st     storage
	name   string
	runs   []segment
	ram    mem.Layout // the runs, and RAM that the file leaves out
	absent uint64
}

// newSegments makes an image of runs, and of left, RAM that the file names but
// does not hold. Where runs overlap (a core written with paging names the same
// memory once for each of its virtual addresses) the run that starts first wins,
// of those that start together the longest.
func newSegments(st storage, name string, runs []segment, left []mem.Extent) (*segments, error) {
	extents := slices.Clone(left)
	for _, e := range left {
		if err := checkExtent(e); err != nil {
			return nil, err
		}
	}
	for _, g := range runs {
		if err := g.check(); err != nil {
			return nil, err
		}
		extents = append(extents, mem.Extent{Start: g.start, Size: g.size})
	}
	if len(runs) == 0 {
		return nil, fmt.Errorf("%w: %s without any memory in it", ErrFormat, name)
	}
	s := &segments{st: st, name: name, ram: union(extents)}
	s.runs = flatten(runs)
	for _, g := range s.runs {
		s.absent += beyond(g.off, g.size, uint64(st.size()))
	}
	s.absent = max(s.absent, st.cut())
	return s, nil
}

// flatten sorts runs and cuts away what an earlier one covers.
func flatten(runs []segment) []segment {
	sorted := slices.Clone(runs)
	sort.SliceStable(sorted, func(i, j int) bool {
		a, b := sorted[i], sorted[j]
		if a.start != b.start {
			return a.start < b.start
		}
		return a.size > b.size
	})
	var out []segment
	for _, g := range sorted {
		if n := len(out); n > 0 {
			if covered := out[n-1].end(); g.end() <= covered {
				continue
			} else if g.start < covered {
				g = g.from(uint64(covered - g.start))
			}
		}
		out = append(out, g)
	}
	return out
}

// union is the memory that extents cover together. None of them is empty or wraps.
func union(extents []mem.Extent) mem.Layout {
	slices.SortFunc(extents, func(a, b mem.Extent) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	var l mem.Layout
	for _, e := range extents {
		if n := len(l); n > 0 && e.Start <= l[n-1].End() {
			l[n-1].Size = uint64(max(l[n-1].End(), e.End()) - l[n-1].Start)
			continue
		}
		l = append(l, e)
	}
	return l
}

// beyond returns how many of the size bytes at off lie behind length.
func beyond(off, size, length uint64) uint64 {
	if off >= length {
		return size
	}
	return size - min(size, length-off)
}

func (s *segments) describe() string {
	if len(s.runs) == 1 {
		return s.name + ", 1 segment"
	}
	return fmt.Sprintf("%s, %d segments", s.name, len(s.runs))
}

func (s *segments) layout() mem.Layout { return slices.Clone(s.ram) }
func (s *segments) missing() uint64    { return s.absent }
func (s *segments) close()             {}

// find returns the index of the first run that ends behind a.
func (s *segments) find(a mem.Phys) int {
	return sort.Search(len(s.runs), func(i int) bool { return s.runs[i].end() > a })
}

// locate returns what stands at a: the rest of its run, or why there is none.
func (s *segments) locate(a mem.Phys) (segment, error) {
	if i := s.find(a); i < len(s.runs) && s.runs[i].start <= a {
		return s.runs[i].from(uint64(a - s.runs[i].start)), nil
	}
	if _, ok := s.ram.Find(a); ok {
		return segment{}, errLeftOut
	}
	return segment{}, mem.ErrNotRAM
}

var errLeftOut = fmt.Errorf("%w: left out when the dump was written", mem.ErrNotRecorded)

func (s *segments) read(addr mem.Phys, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		a, ok := addr.Add(uint64(n))
		if !ok {
			return n, mem.ErrNotRAM
		}
		g, err := s.locate(a)
		if err != nil {
			return n, err
		}
		want := buf[n:]
		if g.size < uint64(len(want)) {
			want = want[:g.size]
		}
		k, err := readFull(s.st, want, int64(g.off))
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *segments) data(from mem.Phys) (mem.Extent, bool) {
	for i := s.find(from); ; i++ {
		next := ^mem.Phys(0)
		if i < len(s.runs) {
			next = s.runs[i].start
		}
		if e, ok := nextRAM(s.ram, from); ok && e.Start < next {
			e.Size = min(e.Size, uint64(next-e.Start)) // left out, which is not zeros
			return e, true
		}
		if i == len(s.runs) {
			return mem.Extent{}, false
		}
		g := s.runs[i]
		if from > g.start {
			g = g.from(uint64(from - g.start))
		}
		if lo, hi, ok := s.st.nextData(int64(g.off), int64(g.off+g.size)); ok {
			return mem.Extent{Start: g.start + mem.Phys(uint64(lo)-g.off), Size: uint64(hi - lo)}, true
		}
		from = g.end()
	}
}

// nextRAM returns the first RAM at or after from.
func nextRAM(l mem.Layout, from mem.Phys) (mem.Extent, bool) {
	i := sort.Search(len(l), func(i int) bool { return l[i].End() > from })
	if i == len(l) {
		return mem.Extent{}, false
	}
	e := l[i]
	if from > e.Start {
		e.Size -= uint64(from - e.Start)
		e.Start = from
	}
	return e, true
}
