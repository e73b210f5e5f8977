// Package mem is Umbra's vocabulary for a machine's memory: addresses, reads of
// many ranges at once, faults, and the snapshot one answer is computed from.
// It imports nothing of ours and knows nothing of Linux.
package mem

import (
	"fmt"
	"slices"
)

// PageSize is the unit in which memory is cached and recorded, in bytes: the
// smallest page of x86-64.
const (
	PageShift = 12
	PageSize  = 1 << PageShift
)

// Phys is a guest-physical byte address.
type Phys uint64

// Virt is a guest-virtual byte address. What it means depends on the page
// tables it is read through.
type Virt uint64

// Add returns a+n, and false when the sum overflows.
func (a Phys) Add(n uint64) (Phys, bool) { s := a + Phys(n); return s, s >= a }

// Page returns the start of the page that holds a.
func (a Phys) Page() Phys { return a &^ (PageSize - 1) }

func (a Phys) String() string { return fmt.Sprintf("phys:%#x", uint64(a)) }

// Add returns a+n, and false when the sum overflows.
func (a Virt) Add(n uint64) (Virt, bool) { s := a + Virt(n); return s, s >= a }

// Page returns the start of the page that holds a.
func (a Virt) Page() Virt { return a &^ (PageSize - 1) }

func (a Virt) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// MarshalText writes a as String does: JSON's numbers lose the low bits of kernel
// addresses in many readers.
func (a Virt) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Extent is a run of RAM: Size bytes from Start on.
type Extent struct {
	Start Phys   `json:"start"`
	Size  uint64 `json:"size"`
}

// End returns the first address behind e.
func (e Extent) End() Phys { return e.Start + Phys(e.Size) }

// Layout is where a machine has RAM: ascending, not overlapping, not wrapping.
type Layout []Extent

// NewLayout sorts extents, joins neighbours and drops empty ones. It fails when
// two overlap or one runs past the end of the address space.
func NewLayout(extents ...Extent) (Layout, error) {
	es := slices.Clone(extents)
	es = slices.DeleteFunc(es, func(e Extent) bool { return e.Size == 0 })
	slices.SortFunc(es, func(a, b Extent) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	var l Layout
	for _, e := range es {
		if _, ok := e.Start.Add(e.Size - 1); !ok {
			return nil, fmt.Errorf("RAM at %v, %#x bytes, runs past the address space", e.Start, e.Size)
		}
		if n := len(l); n > 0 {
			last := &l[n-1]
			switch {
			case e.Start-last.Start < Phys(last.Size):
				return nil, fmt.Errorf("RAM at %v overlaps RAM at %v, %#x bytes", e.Start, last.Start, last.Size)
			case e.Start-last.Start == Phys(last.Size):
				last.Size += e.Size
				continue
			}
		}
		l = append(l, e)
	}
	return l, nil
}

// Size returns the bytes of RAM.
func (l Layout) Size() uint64 {
	var n uint64
	for _, e := range l {
		n += e.Size
	}
	return n
}

// Find returns the extent that holds a.
func (l Layout) Find(a Phys) (Extent, bool) {
	i, ok := slices.BinarySearchFunc(l, a, func(e Extent, a Phys) int {
		switch {
		case a < e.Start:
			return 1
		case a-e.Start >= Phys(e.Size):
			return -1
		}
		return 0
	})
	if !ok {
		return Extent{}, false
	}
	return l[i], true
}
