package linux

import (
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Mount is a mounted file system as a process of its mount namespace sees it, a
// line of /proc/PID/mountinfo. Names are as they are: not escaped. What could not
// be read is nil.
type Mount struct {
	Namespace    *uint64  `json:"mount_namespace"` // inode, as in /proc/PID/ns/mnt
	PID          int      `json:"pid"`             // the process whose view this is: the lowest in the namespace
	Comm         string   `json:"comm"`
	ID           *int     `json:"mount_id"`
	ParentID     *int     `json:"parent_id"`
	Device       *string  `json:"device"`     // "0:22", both numbers decimal
	Root         *string  `json:"root"`       // what of the file system is mounted
	Mountpoint   *string  `json:"mountpoint"` // seen from the process's root directory
	Options      *string  `json:"options"`    // "rw,nosuid,relatime"
	Propagation  []string `json:"propagation"`
	FSType       *string  `json:"fs_type"`
	Source       *string  `json:"source"`
	SuperOptions *string  `json:"super_options"` // those all file systems share: "rw,sync"
	FSOptions    *string  `json:"fs_options"`    // those of this file system: always nil, its own code writes them
	Moved        bool     `json:"moved"`         // memory kept changing while this was read
	Errors       []string `json:"errors"`        // parts that could not be read

	Addr mem.Virt `json:"-"` // of the struct mount
}

// MountOptions chooses what Mounts lists.
type MountOptions struct {
	PID int // what this process sees; 0 means each mount namespace once
}

// maxMounts bounds the mounts of all namespaces together: more would not fit the
// memory an answer may take.
const maxMounts = 1 << 18

// mountLayout is fs/mount.h, include/linux/mount.h, fs.h and nsproxy.h.
type mountLayout struct {
	MntNS   btf.Field `btf:"nsproxy.mnt_ns"`
	NSInum  btf.Field `btf:"mnt_namespace.ns.inum"`
	NSRoot  btf.Field `btf:"mnt_namespace.root"`
	NSList  btf.Field `btf:"mnt_namespace.list ?"` // until 6.8
	NSTree  btf.Field `btf:"mnt_namespace.mounts"` // since then; before, their number
	NSCount btf.Field `btf:"mnt_namespace.nr_mounts mnt_namespace.mounts"`
	Node    btf.Field `btf:"mount.mnt_node ?"`
	Link    btf.Field `btf:"mount.mnt_list"`

	ID       btf.Field `btf:"mount.mnt_id"`
	GroupID  btf.Field `btf:"mount.mnt_group_id"`
	Share    btf.Field `btf:"mount.mnt_share"`
	Master   btf.Field `btf:"mount.mnt_master"`
	Owner    btf.Field `btf:"mount.mnt_ns"`
	Devname  btf.Field `btf:"mount.mnt_devname"`
	Flags    btf.Field `btf:"vfsmount.mnt_flags"`
	Shared   btf.Field `btf:"mount.mnt_t_flags ?"`  // since 6.17 apart from mnt_flags
	IDMap    btf.Field `btf:"vfsmount.mnt_idmap ?"` // since 6.2
	UserNS   btf.Field `btf:"vfsmount.mnt_userns ?"`
	Super    btf.Field `btf:"vfsmount.mnt_sb"`
	SuperNS  btf.Field `btf:"super_block.s_user_ns"`
	SuperFl  btf.Field `btf:"super_block.s_flags"`
	Dev      btf.Field `btf:"super_block.s_dev"`
	Type     btf.Field `btf:"super_block.s_type"`
	Subtype  btf.Field `btf:"super_block.s_subtype"`
	Ops      btf.Field `btf:"super_block.s_op"`
	TypeName btf.Field `btf:"file_system_type.name"`
	ShowPath btf.Field `btf:"super_operations.show_path"`
	ShowDev  btf.Field `btf:"super_operations.show_devname"`
}

// Mounts lists what is mounted in each mount namespace that has a process, in the
// kernel's order. Like /proc/PID/mountinfo it leaves out what lies outside the
// process's root directory. A namespace that cannot be read is a finding, and an
// error when it is the only one asked for.
func Mounts(v *kernel.View, opts MountOptions) ([]Mount, error) {
	return confirmed(v, func() ([]Mount, error) { return listMounts(v, opts) })
}

// listMounts is Mounts for one look.
func listMounts(v *kernel.View, opts MountOptions) ([]Mount, error) {
	r, err := newMountReader(v)
	if err != nil {
		return nil, err
	}
	tasks, err := Tasks(v, TaskOptions{Brief: true, PID: opts.PID})
	if err != nil {
		return nil, err
	}
	spaces, err := r.namespaces(tasks)
	if err != nil {
		return nil, err
	}
	var rows []mountRow
	for _, ns := range spaces {
		if ns.err != nil && opts.PID != 0 {
			return nil, fmt.Errorf("mounts of %s: %w", taskName(ns.pid), ns.err)
		}
		if ns.err != nil {
			v.Find(taskName(ns.pid), "mounts: %v", ns.err)
			continue
		}
		for _, m := range ns.mounts {
			rows = append(rows, mountRow{ns: ns, Mount: Mount{Addr: m}})
		}
	}
	err = v.Each(len(rows), func(i int, w *kernel.Walk) { rows[i] = r.mount(w, rows[i].ns, rows[i].Addr) },
		func(i int) { rows[i].Moved = true })
	if err != nil {
		return nil, err
	}
	out := []Mount{}
	for i := range rows {
		if !rows[i].hidden {
			rows[i].Moved = rows[i].Moved || rows[i].ns.moved
			out = append(out, rows[i].Mount)
		}
	}
	return out, nil
}

// mountRow is a mount while it is being read.
type mountRow struct {
	Mount
	ns     *mountNamespace
	hidden bool // outside the process's root directory
}

// mountNamespace is a mount namespace and the process that it is seen from.
type mountNamespace struct {
	addr   mem.Virt
	task   mem.Virt
	pid    int
	comm   string
	inum   uint64
	root   path
	mounts []mem.Virt // struct mounts
	err    error
	held   uint64 // of the budget
	moved  bool
}

type mountReader struct {
	v    *kernel.View
	l    *mountLayout
	path *pathLayout
	task *taskLayout
	rb   *rbLayout
}

func newMountReader(v *kernel.View) (*mountReader, error) {
	r := &mountReader{v: v}
	var err error
	if err = kernel.Layouts(v.Kernel, &r.l, &r.path, &r.task, &r.rb); err != nil {
		return nil, err
	}
	if !r.l.NSList.Known && !r.l.Node.Known {
		return nil, fmt.Errorf("mnt_namespace has no list or tree of mounts that is known: %w", btf.ErrNoField)
	}
	return r, nil
}

// namespaces finds the mounts of the mount namespaces of tasks, seen from the first
// task in each.
func (r *mountReader) namespaces(tasks []Task) ([]*mountNamespace, error) {
	of := make([]mem.Virt, len(tasks))
	errs := make([]error, len(tasks))
	err := r.v.Each(len(tasks), func(i int, w *kernel.Walk) {
		of[i] = 0
		if tasks[i].Nsp != 0 {
			of[i] = w.Follow(tasks[i].Nsp, r.l.MntNS)
		}
		errs[i] = w.Err()
		if of[i] != 0 && w.View().Snapshot().Batching() {
			_ = w.Probe(func() { w.Word(w.Ptr(of[i], r.l.NSRoot)) })
			_ = w.Probe(func() { w.Ptr(w.Ptr(tasks[i].Addr, r.task.FS), r.task.Root) })
		}
	}, nil)
	if err != nil {
		return nil, err
	}
	var all []*mountNamespace
	seen := make(map[mem.Virt]bool)
	for i, t := range tasks {
		if errs[i] != nil {
			r.v.Find(taskName(t.PID), "mount namespace: %v", errs[i])
		}
		if of[i] == 0 || errs[i] != nil || seen[of[i]] {
			continue
		}
		seen[of[i]] = true
		all = append(all, &mountNamespace{addr: of[i], task: t.Addr, pid: t.PID, comm: t.Comm})
	}
	left := budget{maxMounts}
	err = r.v.Each(len(all), func(i int, w *kernel.Walk) { r.namespace(w, all[i], &left) },
		func(i int) { all[i].moved = true })
	return all, err
}

// namespace reads the mounts of ns and the root directory of its process.
func (r *mountReader) namespace(w *kernel.Walk, ns *mountNamespace, left *budget) {
	l := r.l
	left.back(&ns.held)
	ns.mounts = nil
	ns.inum = w.Uint(ns.addr, l.NSInum)
	w.Guard(ns.addr, l.NSCount)
	rootErr := w.Try(func() { ns.root = readPath(w, r.path, w.At(w.Ptr(ns.task, r.task.FS), r.task.Root)) })
	mountsErr := w.Try(func() {
		if l.NSList.Known {
			r.listed(w, ns)
		} else {
			r.inTree(w, ns)
		}
	})
	if w.OK() {
		r.ahead(w, ns.mounts) // also when only some were found: others' pages are on their way
	}
	w.Fail(rootErr)
	w.Fail(mountsErr)
	if w.OK() {
		left.take(w, &ns.held, uint64(len(ns.mounts)))
	}
	if ns.err = w.Err(); ns.err != nil {
		ns.mounts = nil
	}
}

// inTree takes the mounts from a tree, which orders them by their unique id.
func (r *mountReader) inTree(w *kernel.Walk, ns *mountNamespace) {
	t := rbWalk{w: w, l: r.rb}
	t.tree(w.At(ns.addr, r.l.NSTree))
	for _, n := range t.out {
		ns.mounts = append(ns.mounts, n-mem.Virt(r.l.Node.Offset))
	}
}

// ahead reads what mounts lead to, so that it comes while other namespaces are still
// being read. What it misses and is needed fails later.
func (r *mountReader) ahead(w *kernel.Walk, mounts []mem.Virt) {
	if !w.View().Snapshot().Batching() {
		return
	}
	for _, m := range mounts {
		vfs := m + mem.Virt(r.path.Mount.Offset)
		parts := []func(){
			func() { w.Word(w.Ptr(m, r.l.Devname) &^ 7) },
			func() { w.Word(w.Ptr(w.Ptr(w.Ptr(vfs, r.l.Super), r.l.Type), r.l.TypeName) &^ 7) },
			func() { w.Ptr(w.Ptr(w.Ptr(vfs, r.l.Super), r.l.Ops), r.l.ShowPath) },
			func() { climbAhead(w, r.path, w.Ptr(vfs, r.path.MntRoot)) },
			func() { climbAhead(w, r.path, w.Ptr(m, r.path.Mountpoint)) },
			func() {
				if master := w.Ptr(m, r.l.Master); master != 0 {
					w.Ptr(w.Pointer(w.At(master, r.l.Share))-mem.Virt(r.l.Share.Offset), r.l.Owner)
				}
			},
		}
		for _, part := range parts {
			_ = w.Probe(part)
		}
	}
}

// listed takes the mounts from a list, without the marks that readers of
// /proc/PID/mountinfo leave in it.
func (r *mountReader) listed(w *kernel.Walk, ns *mountNamespace) {
	const cursor = 0x10000000 // MNT_CURSOR, include/linux/mount.h
	if w.View().Snapshot().Batching() {
		_ = w.Probe(func() { // from the other end too: half the rounds
			head := w.At(ns.addr, r.l.NSList)
			for p, n := w.Pointer(head+8), 0; w.OK() && p != head && n < maxMounts; n++ {
				p = w.Pointer(p + 8)
			}
		})
	}
	list(w, w.At(ns.addr, r.l.NSList), func(node mem.Virt) bool {
		m := node - mem.Virt(r.l.Link.Offset)
		if flags := w.Uint(m+mem.Virt(r.path.Mount.Offset), r.l.Flags); w.OK() && flags&cursor == 0 {
			ns.mounts = append(ns.mounts, m)
		}
		return true
	})
}
