package linux

import (
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// mapleLayout is include/linux/maple_tree.h, since 6.1.
type mapleLayout struct {
	Root         btf.Field `btf:"maple_tree.ma_root"`
	Parent       btf.Field `btf:"maple_node.parent"`
	RangePivots  btf.Field `btf:"maple_range_64.pivot"`
	RangeSlots   btf.Field `btf:"maple_range_64.slot"`
	ARangePivots btf.Field `btf:"maple_arange_64.pivot"`
	ARangeSlots  btf.Field `btf:"maple_arange_64.slot"`
}

// A pointer to a node carries the node's type (enum maple_type) in bits 3 to 6; the
// node itself has 256 bytes and lies at a multiple of that.
const (
	mapleNodeSize  = 256
	mapleTypeShift = 3
	mapleTypeMask  = 0xf
	mapleRoot      = 2 // in the low bits of a tree's root that is a node
	mapleReserved  = 4096
	mapleMaxHeight = 31      // MAPLE_HEIGHT_MAX
	mapleMaxNodes  = 1 << 18 // of 10 entries or more
)

// Types of nodes. Dense nodes are not used by any kernel.
const (
	mapleLeaf64   = 1
	mapleRange64  = 2
	mapleARange64 = 3
)

// mapleEntry is a pointer stored in a maple tree for the indexes from First to
// Last, both included.
type mapleEntry struct {
	First, Last uint64
	Ptr         mem.Virt
}

// mapleEntries returns the pointers stored in the maple tree at tree, by ascending
// index. Reserved values are left out.
func mapleEntries(w *kernel.Walk, l *mapleLayout, tree mem.Virt) []mapleEntry {
	m := mapleWalk{w: w, l: l}
	root := w.Follow(tree, l.Root)
	switch {
	case !w.OK() || root == 0:
	case root&3 == mapleRoot && root > mapleReserved:
		m.node(root&^mapleRoot, 0, ^uint64(0), 0)
	case root&3 != mapleRoot: // one entry, at index 0
		m.out = append(m.out, mapleEntry{Ptr: root})
	}
	if !w.OK() {
		return nil
	}
	return m.out
}

type mapleWalk struct {
	w     *kernel.Walk
	l     *mapleLayout
	out   []mapleEntry
	nodes int
}

// shape says where a node of a type has its pivots and slots.
func (m *mapleWalk) shape(kind uint64) (pivots, slots btf.Field, leaf, ok bool) {
	switch kind {
	case mapleLeaf64:
		return m.l.RangePivots, m.l.RangeSlots, true, true
	case mapleRange64:
		return m.l.RangePivots, m.l.RangeSlots, false, true
	case mapleARange64:
		return m.l.ARangePivots, m.l.ARangeSlots, false, true
	}
	return btf.Field{}, btf.Field{}, false, false
}

// node visits the node that enode points to, which covers the indexes from first
// to last. Each of its slots covers a part of them, so that what a node holds can
// only shrink on the way down.
func (m *mapleWalk) node(enode mem.Virt, first, last uint64, height int) {
	w := m.w
	at := enode &^ (mapleNodeSize - 1)
	if m.nodes++; height > mapleMaxHeight || m.nodes > mapleMaxNodes {
		w.Failf("maple node %v: %w", at, kernel.ErrTooLong)
		return
	}
	kind := uint64(enode) >> mapleTypeShift & mapleTypeMask
	pivots, slots, leaf, ok := m.shape(kind)
	n := slots.Len()
	if !ok || pivots.Len() != n-1 || slots.Offset+slots.Size > mapleNodeSize || pivots.Offset+pivots.Size > mapleNodeSize {
		w.Failf("maple node %v: type %d with %d slots", at, kind, n)
		return
	}
	b := w.Bytes(at, mapleNodeSize)
	if !w.OK() {
		return
	}
	if mem.Virt(word(b, int(m.l.Parent.Offset))) == at {
		w.Failf("maple node %v: no longer part of its tree", at)
		return
	}
	var missed error
	for i := range n {
		end := last
		if i < n-1 {
			end = word(b, int(pivots.Offset)+8*i)
			if end == 0 && i > 0 { // unused: the slot before was not the last, this one is
				end = last
			}
		}
		if end < first || end > last {
			w.Fail(fmt.Errorf("maple node %v: slot %d ends at %#x, outside %#x to %#x", at, i, end, first, last))
			return
		}
		// Siblings too before giving up: their pages come in one round.
		err := w.Try(func() { m.slot(mem.Virt(word(b, int(slots.Offset)+8*i)), first, end, leaf, height) })
		if missed == nil {
			missed = err
		}
		if end == last {
			break
		}
		first = end + 1
	}
	w.Fail(missed)
}

// slot takes one slot of a node.
func (m *mapleWalk) slot(e mem.Virt, first, last uint64, leaf bool, height int) {
	switch {
	case !leaf && e == 0:
		m.w.Failf("maple node for %#x to %#x is missing", first, last)
	case !leaf:
		m.node(e, first, last, height+1)
	case e == 0 || e&3 == mapleRoot && e < mapleReserved:
	case len(m.out) >= maxList:
		m.w.Failf("maple tree: more than %d entries: %w", maxList, kernel.ErrTooLong)
	default:
		m.out = append(m.out, mapleEntry{first, last, e})
	}
}
