package linux

import (
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// xarrayLayout is include/linux/xarray.h.
type xarrayLayout struct {
	Head  btf.Field `btf:"xarray.xa_head"`
	Shift btf.Field `btf:"xa_node.shift"`
	Slots btf.Field `btf:"xa_node.slots"`
}

// Entries of an XArray carry their kind in the two low bits: 0 a pointer, 1 a
// value, 2 an internal entry, of which those above the largest error number are nodes.
const (
	xaKindMask   = 3
	xaInternal   = 2
	xaNodeAbove  = 4096
	xaChunkShift = 6
	xaMaxNodes   = 1 << 17 // more than the largest pid_max (4 Mi) needs
)

// xaEntry is a pointer stored in an XArray, its index, and where it is stored.
type xaEntry struct {
	Index uint64
	Ptr   mem.Virt
	Slot  mem.Virt
}

// xarrayEntries returns the pointers stored in the XArray (or IDR, which is one) at
// xa, by ascending index. Values and internal markers are left out.
func xarrayEntries(w *kernel.Walk, l *xarrayLayout, xa mem.Virt) []xaEntry {
	x := xaWalk{w: w, l: l}
	head := w.Pointer(w.At(xa, l.Head))
	switch {
	case head == 0:
	case isXaNode(head):
		x.node(head-xaInternal, 0, -1)
	case head&xaKindMask == 0:
		x.out = append(x.out, xaEntry{0, head, w.At(xa, l.Head)})
	}
	return x.out
}

func isXaNode(e mem.Virt) bool { return e&xaKindMask == xaInternal && e > xaNodeAbove }

type xaWalk struct {
	w     *kernel.Walk
	l     *xarrayLayout
	out   []xaEntry
	nodes int
}

// node visits the node at n, which covers indexes from base on. Its shift must be
// one level below its parent's, so that no tree is deeper than an index is wide.
func (x *xaWalk) node(n mem.Virt, base uint64, parentShift int) {
	w := x.w
	if x.nodes++; x.nodes > xaMaxNodes {
		w.Failf("xarray node %v: %w", n, kernel.ErrTooLong)
	}
	shift := int(w.Uint(n, x.l.Shift))
	if w.OK() && (shift%xaChunkShift != 0 || shift > 60 || parentShift >= 0 && shift != parentShift-xaChunkShift) {
		w.Fail(fmt.Errorf("xarray node %v: shift %d below %d", n, shift, parentShift))
	}
	slots := w.Bytes(w.At(n, x.l.Slots), uint64(x.l.Slots.Size))
	var pending error
	for i := range len(slots) / 8 {
		e := mem.Virt(word(slots, i*8))
		index := base + uint64(i)<<shift
		switch {
		case e == 0:
		case isXaNode(e):
			// Visit the siblings too before giving up: their pages come in one round.
			if err := w.Try(func() { x.node(e-xaInternal, index, shift) }); err != nil && pending == nil {
				pending = err
			}
		case e&xaKindMask == 0:
			x.out = append(x.out, xaEntry{index, e, w.At(n, x.l.Slots) + mem.Virt(i*8)})
		}
	}
	if pending != nil {
		w.Fail(pending)
	}
}
