package linux

import (
	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// rbLayout is include/linux/rbtree_types.h.
type rbLayout struct {
	Root  btf.Field `btf:"rb_root.rb_node"`
	Left  btf.Field `btf:"rb_node.rb_left"`
	Right btf.Field `btf:"rb_node.rb_right"`
	Up    btf.Field `btf:"rb_node.__rb_parent_color"` // the parent, and two bits of colour
}

// rbWalk visits a red-black tree (include/linux/rbtree.h) in order.
type rbWalk struct {
	w   *kernel.Walk
	l   *rbLayout
	out []mem.Virt
	n   int
}

// A red-black tree of n nodes is at most 2 log2(n+1) deep.
const (
	maxRBNodes = maxList
	maxRBDepth = 42
)

// tree visits the nodes of the tree whose rb_root lies at root.
func (t *rbWalk) tree(root mem.Virt) { t.node(t.w.Ptr(root, t.l.Root), 0, 0) }

// node visits the nodes below n. As each knows its parent, none is visited twice.
func (t *rbWalk) node(n, parent mem.Virt, depth int) {
	w := t.w
	if n == 0 || !w.OK() {
		return
	}
	if t.n++; t.n > maxRBNodes || depth > maxRBDepth {
		w.Failf("tree node %v: %w", n, kernel.ErrTooLong)
		return
	}
	left, right, up := w.Ptr(n, t.l.Left), w.Ptr(n, t.l.Right), w.Ptr(n, t.l.Up)&^3
	if w.OK() && (up != parent || left == right && left != 0) {
		w.Failf("tree node %v, found below %v: its parent is %v, its children are %v and %v: %w", n, parent, up, left, right, kernel.ErrLoop)
	}
	if !w.OK() {
		return
	}
	// The right side too before giving up on the left: their pages come in one round.
	leftErr := w.Try(func() { t.node(left, n, depth+1) })
	t.out = append(t.out, n)
	rightErr := w.Try(func() { t.node(right, n, depth+1) })
	w.Fail(leftErr)
	w.Fail(rightErr)
}
