package linux

import (
	"fmt"
	"strings"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// pathLayout is include/linux/path.h, dcache.h and fs/mount.h.
type pathLayout struct {
	Mnt        btf.Field `btf:"path.mnt"`
	Dentry     btf.Field `btf:"path.dentry"`
	Parent     btf.Field `btf:"dentry.d_parent"`
	NameLen    btf.Field `btf:"dentry.__d_name.len dentry.d_name.len"` // __d_name since 6.17
	Name       btf.Field `btf:"dentry.__d_name.name dentry.d_name.name"`
	Inode      btf.Field `btf:"dentry.d_inode"`
	Flags      btf.Field `btf:"dentry.d_flags"`
	HashPprev  btf.Field `btf:"dentry.d_hash.pprev"`
	Op         btf.Field `btf:"dentry.d_op"`
	Dname      btf.Field `btf:"dentry_operations.d_dname"`
	MntRoot    btf.Field `btf:"vfsmount.mnt_root"`
	Mount      btf.Field `btf:"mount.mnt"`
	MntParent  btf.Field `btf:"mount.mnt_parent"`
	Mountpoint btf.Field `btf:"mount.mnt_mountpoint"`
	Ino        btf.Field `btf:"inode.i_ino"`
	Private    btf.Field `btf:"inode.i_private"`
	NsOps      btf.Field `btf:"ns_common.ops"`
	NsOpsName  btf.Field `btf:"proc_ns_operations.name"`
}

// maxComponents bounds a path's depth: PATH_MAX bytes hold no more.
const maxComponents = 2048

// maxPath bounds a path's text, in bytes. /proc's links hold a page of it; files
// that list paths can hold more.
const maxPath = 1 << 16

// path is a struct path: a dentry as a mount shows it.
type path struct{ mnt, dentry mem.Virt }

// readPath reads the struct path at a and guards it.
func readPath(w *kernel.Walk, l *pathLayout, a mem.Virt) path {
	return path{w.Follow(a, l.Mnt), w.Follow(a, l.Dentry)}
}

// pathText renders p as /proc's links show it to a process whose root is root
// (fs/d_path.c): from root's tree, or from the top of the tree p is mounted in
// when that is another. deleted tells that the name is no longer linked, for which
// the text ends in " (deleted)".
func pathText(w *kernel.Walk, l *pathLayout, p, root path) (text string, deleted bool) {
	if p.dentry == 0 || p.mnt == 0 {
		w.Failf("path at dentry %v, mount %v is empty", p.dentry, p.mnt)
		return "", false
	}
	isRoot := w.Ptr(p.dentry, l.Parent) == p.dentry
	if !isRoot || p.dentry != w.Ptr(p.mnt, l.MntRoot) {
		if s, del, ok := dynamicName(w, l, p.dentry); ok {
			return s, del
		}
	}
	deleted = w.Uint(p.dentry, l.HashPprev) == 0 && !isRoot
	text, _ = treePath(w, l, p, root)
	if deleted {
		text += " (deleted)"
	}
	return text, deleted
}

// treePath climbs from p to root, through mounts, and joins the names it meets.
// reached tells that it came to root, not to the top of another tree.
// What a step does not need is read even when something before it could not be:
// then all of it comes in one round.
func treePath(w *kernel.Walk, l *pathLayout, p, root path) (text string, reached bool) {
	var names []string
	size := 0
	var failed error
	try := func(part func()) {
		if err := w.Try(part); failed == nil {
			failed = err
		}
	}
	mnt := p.mnt - mem.Virt(l.Mount.Offset) // struct mount around the vfsmount
	d := p.dentry
	mountsAhead(w, l, mnt)
	for steps := 0; w.OK(); steps++ {
		if steps > maxComponents {
			w.Failf("path at dentry %v: %w", p.dentry, kernel.ErrTooLong)
			break
		}
		vfs := mnt + mem.Virt(l.Mount.Offset)
		if d == root.dentry && vfs == root.mnt {
			reached = true
			break
		}
		var top mem.Virt
		try(func() { top = w.Ptr(vfs, l.MntRoot) })
		parent := w.Ptr(d, l.Parent)
		if d == top {
			up := w.Ptr(mnt, l.MntParent)
			if up != mnt {
				d, mnt = w.Ptr(mnt, l.Mountpoint), up
				continue
			}
			break // the top of another tree
		}
		if parent == d { // below a root that the mount does not show
			names = nil
			break
		}
		try(func() {
			name := dentryName(w, l, d)
			if size += 1 + len(name); size > maxPath {
				w.Failf("path at dentry %v: %w", p.dentry, kernel.ErrTooLong)
			}
			names = append(names, name)
		})
		if size > maxPath {
			break
		}
		d = parent
	}
	w.Fail(failed)
	return join(names), reached
}

// climbAhead reads what leads from dentry to the root of its file system, with the
// names on the way.
func climbAhead(w *kernel.Walk, l *pathLayout, dentry mem.Virt) {
	const most = 8
	for range most {
		_ = w.Probe(func() { w.Word(w.Ptr(dentry, l.Name) &^ 7) })
		up := w.Ptr(dentry, l.Parent)
		if !w.OK() || up == dentry {
			return
		}
		dentry = up
	}
}

// mountsAhead reads what leads from mnt to the top of its tree, for a climb that
// comes there later. What it misses and the climb needs fails there.
func mountsAhead(w *kernel.Walk, l *pathLayout, mnt mem.Virt) {
	const most = 8
	if !w.View().Snapshot().Batching() {
		return
	}
	_ = w.Probe(func() {
		for range most {
			up := w.Ptr(mnt, l.MntParent)
			if !w.OK() || up == mnt {
				return
			}
			w.Ptr(w.Ptr(mnt, l.Mountpoint), l.Parent)
			mnt = up
		}
	})
}

// join writes names, innermost first, as an absolute path.
func join(names []string) string {
	if len(names) == 0 {
		return "/"
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(names[i])
	}
	return b.String()
}

// dentryName returns the last component of a dentry.
func dentryName(w *kernel.Walk, l *pathLayout, dentry mem.Virt) string {
	n := w.Uint(dentry, l.NameLen)
	if n > maxString {
		w.Failf("dentry %v: name of %d bytes: %w", dentry, n, kernel.ErrTooLong)
		return ""
	}
	return string(w.Bytes(w.Ptr(dentry, l.Name), n))
}

// dynamicName renders a dentry whose file system makes names up when asked
// (dentry_operations.d_dname): pipes, sockets, anonymous inodes, memfds, namespaces.
func dynamicName(w *kernel.Walk, l *pathLayout, dentry mem.Virt) (text string, deleted, ok bool) {
	op := w.Ptr(dentry, l.Op)
	if !w.OK() || op == 0 {
		return "", false, false
	}
	fn := w.Ptr(op, l.Dname)
	if !w.OK() || fn == 0 {
		return "", false, false
	}
	s, off, known := w.View().Symbols().Symbolize(fn)
	if !known || off != 0 {
		w.Failf("dentry %v: its d_dname %v is no function of the kernel", dentry, fn)
		return "", false, true
	}
	inode := func() uint64 { return w.Uint(w.Ptr(dentry, l.Inode), l.Ino) }
	switch s.Name {
	case "pipefs_dname":
		return fmt.Sprintf("pipe:[%d]", inode()), false, true
	case "sockfs_dname":
		return fmt.Sprintf("socket:[%d]", inode()), false, true
	case "anon_inodefs_dname":
		return "anon_inode:" + dentryName(w, l, dentry), false, true
	case "simple_dname": // memfd, hugetlbfs, SysV shared memory (mm/shmem.c)
		return "/" + dentryName(w, l, dentry) + " (deleted)", true, true
	case "ns_dname": // fs/nsfs.c: "mnt:[4026531840]"
		return namespaceName(w, l, w.Ptr(dentry, l.Inode)), false, true
	case "pidfs_dname": // fs/pidfs.c, since 6.9
		return "anon_inode:[pidfd]", false, true
	}
	w.Failf("dentry %v: names made by %s are not known", dentry, s.Name)
	return "", false, true
}

// namespaceName renders a namespace's inode: its kind and number.
func namespaceName(w *kernel.Walk, l *pathLayout, inode mem.Virt) string {
	ops := w.Ptr(w.Ptr(inode, l.Private), l.NsOps)
	return fmt.Sprintf("%s:[%d]", w.String(w.Ptr(ops, l.NsOpsName), 64), w.Uint(inode, l.Ino))
}
