package linux

import (
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// moduleTreeLayout is the tree the kernel finds a module by an address in
// (include/linux/rbtree_latch.h): two red-black trees, of which the sequence
// count says which one is whole.
type moduleTreeLayout struct {
	Root  btf.Field `btf:"mod_tree_root.root"`
	Seq   btf.Field `btf:"latch_tree_root.seq"` // seqcount_latch_t, whose first member is the count
	Trees btf.Field `btf:"latch_tree_root.tree"`
	Node  btf.Field `btf:"mod_tree_node.node"`
	Mod   btf.Field `btf:"mod_tree_node.mod"`
	Pair  btf.Field `btf:"latch_tree_node.node"`
	Left  btf.Field `btf:"rb_node.rb_left"`
	Right btf.Field `btf:"rb_node.rb_right"`
}

// tree notes the modules in mod_tree, each once however many parts of it are there.
func (r *moduleReader) tree(w *kernel.Walk, found map[mem.Virt]bool) {
	l, err := kernel.Layout[moduleTreeLayout](r.v.Kernel)
	if err != nil {
		w.Fail(err)
		return
	}
	root, err := r.v.Symbol("mod_tree")
	if err != nil {
		w.Fail(err)
		return
	}
	latch := w.At(root, l.Root)
	w.Guard(latch, l.Seq)
	which := mem.Virt(w.U32(w.At(latch, l.Seq)) & 1)
	top := w.Pointer(w.At(latch, l.Trees) + which*mem.Virt(l.Trees.Elem))
	inNode := mem.Virt(l.Node.Offset) + mem.Virt(l.Pair.Offset) + which*mem.Virt(l.Pair.Elem)
	var first error
	for _, node := range moduleTreeNodes(w, l.Left, l.Right, top, "mod_tree") {
		err := w.Try(func() {
			if m := w.Ptr(node-inNode, l.Mod); w.OK() && m != 0 {
				found[m] = true
			}
		})
		first = firstError(first, err)
	}
	if first != nil {
		w.Fail(first)
	}
}

// maxTreeDepth is more than the depth of any red-black tree: it would hold 2^40 nodes.
const maxTreeDepth = 80

// moduleTreeNodes returns the nodes of the red-black tree below top. Both sides of
// a node are tried before an error ends the walk, so that a level of the tree is
// one round.
func moduleTreeNodes(w *kernel.Walk, left, right btf.Field, top mem.Virt, name string) (nodes []mem.Virt) {
	seen := make(map[mem.Virt]struct{})
	var visit func(n mem.Virt, depth int)
	visit = func(n mem.Virt, depth int) {
		if n == 0 || !w.OK() {
			return
		}
		if _, again := seen[n]; again {
			w.Failf("%s, node %v: %w", name, n, kernel.ErrLoop)
			return
		}
		if depth > maxTreeDepth || len(seen) >= maxList {
			w.Failf("%s, node %v: %w", name, n, kernel.ErrTooLong)
			return
		}
		seen[n] = struct{}{}
		nodes = append(nodes, n)
		l, r := w.Ptr(n, left), w.Ptr(n, right)
		err := w.Try(func() { visit(l, depth+1) })
		if err = firstError(err, w.Try(func() { visit(r, depth+1) })); err != nil {
			w.Fail(err)
		}
	}
	visit(top, 0)
	return nodes
}

// firstError returns the first of errs that is one.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// moduleSysfsLayout is what leads from module_kset to the entries of /sys/module
// (include/linux/kobject.h, kernfs.h).
type moduleSysfsLayout struct {
	KsetKobj btf.Field `btf:"kset.kobj"`
	Dir      btf.Field `btf:"kobject.sd"`
	Children btf.Field `btf:"kernfs_node.dir.children"`
	Rb       btf.Field `btf:"kernfs_node.rb"`
	Priv     btf.Field `btf:"kernfs_node.priv"`
	Type     btf.Field `btf:"kobject.ktype"`
	Left     btf.Field `btf:"rb_node.rb_left"`
	Right    btf.Field `btf:"rb_node.rb_right"`
}

// sysfs notes the modules that /sys/module has a directory of. Built-in ones have
// no struct module and are left out.
func (r *moduleReader) sysfs(w *kernel.Walk, found map[mem.Virt]bool) {
	l, err := kernel.Layout[moduleSysfsLayout](r.v.Kernel)
	if err != nil {
		w.Fail(err)
		return
	}
	at, kind := symbol(w, "module_kset"), symbol(w, "module_ktype")
	dir := w.Ptr(w.At(w.Pointer(at), l.KsetKobj), l.Dir)
	top := w.Pointer(w.At(dir, l.Children))
	var first error
	for _, node := range moduleTreeNodes(w, l.Left, l.Right, top, "/sys/module") {
		err := w.Try(func() {
			kobj := w.Ptr(node-mem.Virt(l.Rb.Offset), l.Priv)
			if w.Ptr(kobj, l.Type) != kind {
				return // an attribute of the directory itself, or a link
			}
			if m := w.Ptr(kobj-mem.Virt(r.l.KobjKobj.Offset), r.l.KobjMod); w.OK() && m != 0 {
				found[m] = true
			}
		})
		first = firstError(first, err)
	}
	if first != nil {
		w.Fail(first)
	}
}

// compare reports modules that are not wherever a loaded module is.
func (r *moduleReader) compare(s *moduleSet) {
	for _, o := range s.oddities() {
		r.v.Find(o.object, "%s", o.what)
	}
}

type oddity struct{ object, what string }

// oddities tells what does not add up between the list, the tree and sysfs.
func (s *moduleSet) oddities() (odd []oddity) {
	for _, e := range []struct {
		what string
		err  error
	}{{"list", s.listErr}, {"tree", s.treeErr}, {"directory in sysfs", s.sErr}} {
		if e.err != nil {
			odd = append(odd, oddity{"modules", fmt.Sprintf("their %s cannot be followed: %v", e.what, e.err)})
		}
	}
	for i := range s.rows {
		m := &s.rows[i]
		add := func(format string) {
			odd = append(odd, oddity{fmt.Sprintf("module %q at %v", m.Name, m.Addr), format})
		}
		if s.listErr == nil && !s.inList[m.Addr] {
			add("is loaded, but not in the list of modules")
		}
		if m.state == moduleUnformed && s.sErr == nil && s.inSys[m.Addr] {
			add("is in /sys/module, but marked as not yet loaded, which hides it")
		}
		if m.state != moduleLive {
			continue // on its way in or out it is in some of the places only
		}
		if s.treeErr == nil && !s.inTree[m.Addr] {
			add("is live, but not in the tree of modules by address")
		}
		if s.sErr == nil && !s.inSys[m.Addr] {
			add("is live, but not in /sys/module")
		}
	}
	return odd
}
