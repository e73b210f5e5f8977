package ksym

import (
	"encoding/binary"
	"iter"

	"github.com/umbravm/umbra/mem"
)

// markerRun is a run of 32-bit values that could be kallsyms_markers.
type markerRun struct {
	at     mem.Virt
	values []uint32
}

const (
	minBlockBytes = blockNames * 2
	maxBlockBytes = blockNames * maxEntry
	// seqBytes is what an entry of kallsyms_seqs_of_names takes up.
	seqBytes = 3
	// maxBeforeTokens is how far before the tokens the markers can begin.
	maxBeforeTokens = maxSymbols*seqBytes + maxSymbols/blockNames*4 + 64
)

// isStep tells whether a marker can follow another.
func isStep(from, to uint32) bool {
	return to > from && to-from >= minBlockBytes && to-from <= maxBlockBytes
}

// markerRuns yields, from the token table backwards, where markers may begin: a
// zero and at least minSymbols/256 values that each step by what 256 names take.
func (v view) markerRuns(tokens mem.Virt) iter.Seq[markerRun] {
	const chunk = 64 << 10
	const need = 4 * minSymbols / blockNames
	return func(yield func(markerRun) bool) {
		buf := make([]byte, chunk+need)
		hi := tokens &^ 3
		lowest := v.base
		if uint64(hi-v.base) > maxBeforeTokens {
			lowest = (hi - maxBeforeTokens) &^ 3
		}
		for hi > lowest {
			lo := max(lowest, hi-min(hi, chunk))
			p := buf[:min(uint64(len(buf)), uint64(tokens-lo))]
			v.readLoose(p, lo)
			for i := (min(len(p), int(hi-lo)) - 4) &^ 3; i >= 0; i -= 4 {
				if !startsMarkers(p[i:]) {
					continue
				}
				at := lo + mem.Virt(i)
				if !yield(markerRun{at, v.markerValues(at, tokens)}) {
					return
				}
			}
			hi = lo
		}
	}
}

func startsMarkers(p []byte) bool {
	const need = minSymbols / blockNames
	if len(p) < 4*need || binary.LittleEndian.Uint32(p) != 0 {
		return false
	}
	prev := uint32(0)
	for i := 1; i < need; i++ {
		m := binary.LittleEndian.Uint32(p[4*i:])
		if !isStep(prev, m) {
			return false
		}
		prev = m
	}
	return true
}

// markerValues reads the run of markers at a, as long as they step on.
func (v view) markerValues(a, end mem.Virt) []uint32 {
	n := min(uint64(end-a), maxSymbols/blockNames*4)
	p := v.readUpTo(make([]byte, n), a)
	values := []uint32{0}
	for i := 4; i+4 <= len(p); i += 4 {
		m := binary.LittleEndian.Uint32(p[i:])
		if !isStep(values[len(values)-1], m) {
			break
		}
		values = append(values, m)
	}
	return values
}

// namesBefore finds where the names that markers belong to begin: right behind
// a number of symbols that has as many blocks as there are markers, and so that
// the names behind the last marker end where the markers begin. What follows
// the markers may look like a few more of them, so shorter runs are tried, too.
func (f *finder) namesBefore(m markerRun) ([]Locations, error) {
	var found []Locations
	for cut := range 4 {
		count := len(m.values) - cut
		if count < minSymbols/blockNames {
			break
		}
		more, err := f.namesWith(m.at, m.values[count-1], uint32(count))
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// namesWith returns the places the names can begin at when the last of count
// markers has the value last.
func (f *finder) namesWith(markers mem.Virt, last, count uint32) ([]Locations, error) {
	const span = 8 + maxBlockBytes + 8
	reach := uint64(last) + span
	if uint64(markers-f.base) < reach {
		return nil, nil
	}
	lo := (markers - mem.Virt(reach)) &^ 3
	tailAt := markers - span
	p, tail := make([]byte, span), make([]byte, span)
	f.readLoose(p, lo)
	f.readLoose(tail, tailAt)
	var found []Locations
	for i := 0; i+4 <= len(p); i += 4 {
		n := binary.LittleEndian.Uint32(p[i:])
		if n < minSymbols || n > maxSymbols || blocks(n) != count {
			continue
		}
		for _, align := range []mem.Virt{4, 8} { // since 7.0, before
			if err := take(&f.tails); err != nil {
				return nil, err
			}
			names := lo + mem.Virt(i) + align
			off := int64(names+mem.Virt(last)) - int64(tailAt)
			if off >= 0 && off <= span && endsAt(tail[off:], n-(count-1)*blockNames) {
				found = append(found, Locations{NumSyms: lo + mem.Virt(i), Names: names, Markers: markers})
			}
		}
	}
	return found, nil
}

// endsAt tells whether n names fill p up to alignment.
func endsAt(p []byte, n uint32) bool {
	for range n {
		_, size, ok := entry(p)
		if !ok {
			return false
		}
		p = p[size:]
	}
	return len(p) < 8 && allZero(p)
}
