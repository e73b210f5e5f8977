package linux

import (
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// An option of a mount or a file system: a flag and its word.
type flagWord struct {
	flag uint64
	word string
}

// mountWords are the flags of include/linux/mount.h that /proc shows, in its order.
var mountWords = []flagWord{
	{0x01, "nosuid"}, {0x02, "nodev"}, {0x04, "noexec"}, {0x08, "noatime"},
	{0x10, "nodiratime"}, {0x20, "relatime"}, {0x80, "nosymfollow"},
}

// superWords are the flags of include/linux/fs.h that /proc shows, in its order.
var superWords = []flagWord{{1 << 4, "sync"}, {1 << 7, "dirsync"}, {1 << 6, "mand"}, {1 << 25, "lazytime"}}

const (
	mountReadOnly = 0x40 // MNT_READONLY
	superReadOnly = 0x01 // SB_RDONLY
)

// Marks of shared and unbindable mounts: in mnt_flags, and since 6.17 in mnt_t_flags.
const (
	mountShared     = 0x1000
	mountUnbindable = 0x2000
	treeShared      = 1
	treeUnbindable  = 2
)

// words renders flags as /proc does: whether it can be written to, then the rest.
func words(flags, readOnly uint64, known []flagWord) string {
	s := "rw"
	if flags&readOnly != 0 {
		s = "ro"
	}
	for _, k := range known {
		if flags&k.flag != 0 {
			s += "," + k.word
		}
	}
	return s
}

// mount reads the struct mount at m as /proc/PID/mountinfo shows it
// (fs/proc_namespace.c, show_mountinfo).
func (r *mountReader) mount(w *kernel.Walk, ns *mountNamespace, m mem.Virt) mountRow {
	l := r.l
	row := mountRow{ns: ns, Mount: Mount{Namespace: &ns.inum, PID: ns.pid, Comm: ns.comm, Addr: m}}
	row.Errors, row.Propagation = []string{}, []string{}
	try := func(part string, read func()) {
		if err := w.Try(read); err != nil {
			row.Errors = append(row.Errors, part+": "+err.Error())
		}
	}
	vfs := m + mem.Virt(r.path.Mount.Offset)
	try("mountpoint", func() {
		s, reached := treePath(w, r.path, path{vfs, w.Ptr(vfs, r.path.MntRoot)}, ns.root)
		if w.OK() {
			row.Mountpoint, row.hidden = &s, !reached
		}
	})
	try("mount_id", func() { row.ID = intRead(w, w.Int(m, l.ID)) })
	try("parent_id", func() { row.ParentID = intRead(w, w.Int(w.Follow(m, r.path.MntParent), l.ID)) })
	sb := mem.Virt(0)
	sbErr := w.Try(func() { sb = w.Ptr(vfs, l.Super) })
	super := func(part string, read func()) { try(part, func() { w.Fail(sbErr); read() }) }
	super("device", func() {
		dev := w.Uint(sb, l.Dev)
		row.Device = textRead(w, fmt.Sprintf("%d:%d", dev>>20, dev&(1<<20-1)))
	})
	super("root", func() { row.Root = textRead(w, r.rootText(w, sb, w.Ptr(vfs, r.path.MntRoot))) })
	super("options", func() { row.Options = textRead(w, r.options(w, vfs, sb)) })
	super("fs_type", func() { row.FSType = textRead(w, r.fsType(w, sb)) })
	super("source", func() { row.Source = textRead(w, r.source(w, m, sb)) })
	super("super_options", func() { row.SuperOptions = textRead(w, words(w.Uint(sb, l.SuperFl), superReadOnly, superWords)) })
	try("propagation", func() {
		if p := r.propagation(w, ns, m, vfs); w.OK() {
			row.Propagation = p
		}
	})
	return row
}

// intRead and textRead return values that were read, nil when the walk failed.
func intRead(w *kernel.Walk, n int64) *int {
	if !w.OK() {
		return nil
	}
	i := int(n)
	return &i
}

func textRead(w *kernel.Walk, s string) *string {
	if !w.OK() {
		return nil
	}
	return &s
}

// options returns what holds for the mount, not for its file system.
func (r *mountReader) options(w *kernel.Walk, vfs, sb mem.Virt) string {
	s := words(w.Uint(vfs, r.l.Flags), mountReadOnly, mountWords)
	if r.idmapped(w, vfs, sb) {
		s += ",idmapped"
	}
	return s
}

// idmapped tells whether a mount maps owners (include/linux/fs.h, is_idmapped_mnt),
// which mounts can since 5.12.
func (r *mountReader) idmapped(w *kernel.Walk, vfs, sb mem.Virt) bool {
	symbol := func(name string) mem.Virt {
		a, err := w.View().Symbol(name)
		w.Fail(err)
		return a
	}
	switch {
	case r.l.IDMap.Known:
		return w.Ptr(vfs, r.l.IDMap) != symbol("nop_mnt_idmap")
	case r.l.UserNS.Known:
		// Without a map it is the first user namespace, or the file system's own since 5.17.
		ns := w.Ptr(vfs, r.l.UserNS)
		return ns != symbol("init_user_ns") && ns != w.Ptr(sb, r.l.SuperNS)
	}
	return false
}

// function returns the name of a function pointer, "" when it is NULL.
func (r *mountReader) function(w *kernel.Walk, ops mem.Virt, f btf.Field) string {
	fn := w.Ptr(ops, f)
	if fn == 0 || !w.OK() {
		return ""
	}
	s, off, ok := w.View().Symbols().Symbolize(fn)
	if !ok || off != 0 {
		w.Failf("%s of the operations at %v is %v, no function of the kernel", f.Name, ops, fn)
	}
	return s.Name
}

// rootText returns which part of the file system is mounted: a path inside it.
func (r *mountReader) rootText(w *kernel.Walk, sb, dentry mem.Virt) string {
	switch fn := r.function(w, w.Ptr(sb, r.l.Ops), r.l.ShowPath); {
	case !w.OK():
		return ""
	case fn == "nsfs_show_path":
		return namespaceName(w, r.path, w.Ptr(dentry, r.path.Inode))
	case fn == "" || fn == "kernfs_sop_show_path":
		return dentryPath(w, r.path, dentry)
	default:
		w.Failf("super_block %v: roots shown by %s are not known", sb, fn)
		return ""
	}
}

// dentryPath returns a dentry's path from the root of its file system
// (fs/d_path.c, dentry_path).
func dentryPath(w *kernel.Walk, l *pathLayout, dentry mem.Virt) string {
	var names []string
	d := dentry
	for w.OK() {
		parent := w.Ptr(d, l.Parent)
		if parent == d {
			break
		}
		if len(names) > maxComponents {
			w.Failf("path of dentry %v: %w", dentry, kernel.ErrTooLong)
		}
		names = append(names, dentryName(w, l, d))
		d = parent
	}
	s := join(names)
	if d != dentry && w.Uint(dentry, l.HashPprev) == 0 {
		s += "//deleted"
	}
	return s
}

// fsType returns the file system's type, with its subtype: "fuse.sshfs".
func (r *mountReader) fsType(w *kernel.Walk, sb mem.Virt) string {
	s := w.String(w.Ptr(w.Ptr(sb, r.l.Type), r.l.TypeName), maxString)
	if sub := w.Ptr(sb, r.l.Subtype); sub != 0 && w.OK() {
		s += "." + w.String(sub, maxString)
	}
	return s
}

// source returns what is mounted, as whoever mounted it named it.
func (r *mountReader) source(w *kernel.Walk, m, sb mem.Virt) string {
	if fn := r.function(w, w.Ptr(sb, r.l.Ops), r.l.ShowDev); fn != "" {
		w.Failf("super_block %v: sources shown by %s are not known", sb, fn)
	}
	name := w.Ptr(m, r.l.Devname)
	if name == 0 {
		return "none"
	}
	return w.String(name, maxString)
}

// propagation returns the optional fields: "shared:N", "master:N",
// "propagate_from:N", "unbindable".
func (r *mountReader) propagation(w *kernel.Walk, ns *mountNamespace, m, vfs mem.Virt) []string {
	l := r.l
	flags, shared, unbindable := w.Uint(vfs, l.Flags), uint64(mountShared), uint64(mountUnbindable)
	if l.Shared.Known {
		flags, shared, unbindable = w.Uint(m, l.Shared), treeShared, treeUnbindable
	}
	out := []string{}
	if flags&shared != 0 {
		out = append(out, fmt.Sprintf("shared:%d", w.Int(m, l.GroupID)))
	}
	if master := w.Follow(m, l.Master); master != 0 && w.OK() {
		id := w.Int(master, l.GroupID)
		out = append(out, fmt.Sprintf("master:%d", id))
		if from := r.dominating(w, ns, master); from != 0 && from != id {
			out = append(out, fmt.Sprintf("propagate_from:%d", from))
		}
	}
	if flags&unbindable != 0 {
		out = append(out, "unbindable")
	}
	return out
}

// dominating returns the peer group nearest above a mount, its master's or further
// up, that has a member below the process's root; 0 without (fs/pnode.c,
// get_dominating_id).
func (r *mountReader) dominating(w *kernel.Walk, ns *mountNamespace, master mem.Virt) int64 {
	seen := make(map[mem.Virt]bool)
	for m := master; m != 0 && w.OK(); m = w.Ptr(m, r.l.Master) {
		for peer := m; w.OK(); {
			if seen[peer] || len(seen) > maxList {
				w.Failf("peers of mount %v: %w", m, kernel.ErrLoop)
				break
			}
			seen[peer] = true
			if w.Ptr(peer, r.l.Owner) == ns.addr && r.below(w, peer, ns.root) {
				return w.Int(peer, r.l.GroupID)
			}
			if peer = w.Pointer(w.At(peer, r.l.Share)) - mem.Virt(r.l.Share.Offset); peer == m {
				break
			}
		}
	}
	return 0
}

// below tells whether a mount's root can be reached from root (fs/namespace.c,
// is_path_reachable).
func (r *mountReader) below(w *kernel.Walk, m mem.Virt, root path) bool {
	vfs := m + mem.Virt(r.path.Mount.Offset)
	_, reached := treePath(w, r.path, path{vfs, w.Ptr(vfs, r.path.MntRoot)}, root)
	return reached
}
