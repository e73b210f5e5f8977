package linux

import (
	"fmt"
	"strings"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// File is one open descriptor of a process, as /proc/PID/fd and /proc/PID/fdinfo of
// the machine's first PID namespace show it. What could not be read is nil.
type File struct {
	PID     int      `json:"pid"`
	Comm    string   `json:"comm"`
	FD      int      `json:"fd"`
	Type    *string  `json:"type"`
	Path    *string  `json:"path"`  // as the link reads, seen from pid 1's root directory
	Flags   *uint32  `json:"flags"` // O_ flags of open(2), with O_CLOEXEC of the descriptor
	Pos     *int64   `json:"pos"`   // bytes
	Inode   *uint64  `json:"inode"`
	Deleted *bool    `json:"deleted"` // the name it was opened by is gone
	MountID *int     `json:"mount_id"`
	Moved   bool     `json:"moved"`  // memory kept changing while this was read
	Errors  []string `json:"errors"` // parts that could not be read

	Addr mem.Virt `json:"-"` // of the struct file
	slot mem.Virt // of the descriptor table, where Addr is
}

// Types of files that File.Type names besides those of anonymous inodes, which have
// the name the kernel gives them: eventfd, eventpoll, timerfd, signalfd, inotify, …
const (
	typeRegular   = "regular"
	typeDirectory = "directory"
	typeSymlink   = "symlink"
	typeChar      = "chardev"
	typeBlock     = "blockdev"
	typeFIFO      = "fifo"
	typePipe      = "pipe"
	typeSocket    = "socket"
	typeNamespace = "namespace"
	typePidfd     = "pidfd"
	typeMemfd     = "memfd"
)

// fileLayout is include/linux/fs.h and pid_namespace.h.
type fileLayout struct {
	Path       btf.Field `btf:"file.f_path"`
	Inode      btf.Field `btf:"file.f_inode"`
	Flags      btf.Field `btf:"file.f_flags"`
	Pos        btf.Field `btf:"file.f_pos"`
	Mode       btf.Field `btf:"inode.i_mode"`
	Ino        btf.Field `btf:"inode.i_ino"`
	Super      btf.Field `btf:"inode.i_sb"`
	SuperMagic btf.Field `btf:"super_block.s_magic"`
	MountID    btf.Field `btf:"mount.mnt_id"`
}

// openCloexec is O_CLOEXEC of include/uapi/asm-generic/fcntl.h.
const openCloexec = 0o2000000

// maxFiles bounds the descriptors of all processes together, and those of all tables
// that they have: more would not fit the memory an answer may take.
const maxFiles = 1 << 19

// FileOptions chooses what Files lists.
type FileOptions struct {
	PID int // only this process; 0 means all
}

// Files lists every open descriptor of the machine's processes, by ascending pid
// and descriptor. A process whose descriptor table cannot be read is a finding, and
// an error when it is the only one asked for.
func Files(v *kernel.View, opts FileOptions) ([]File, error) {
	return confirmed(v, func() ([]File, error) { return listFiles(v, opts) })
}

// listFiles is Files for one look.
func listFiles(v *kernel.View, opts FileOptions) ([]File, error) {
	r, err := newFileReader(v)
	if err != nil {
		return nil, err
	}
	tasks, err := Tasks(v, TaskOptions{Brief: true, PID: opts.PID})
	if err != nil {
		return nil, err
	}
	tables, err := r.tables(tasks)
	if err != nil {
		return nil, err
	}
	rows := []File{}
	for i, t := range tasks {
		tab := tables[t.Files]
		if tab == nil {
			continue // a zombie
		}
		if tab.err != nil {
			if opts.PID != 0 {
				return nil, fmt.Errorf("open files of %s: %w", taskName(t.PID), tab.err)
			}
			v.Find(taskName(t.PID), "open files: %v", tab.err)
			continue
		}
		if len(rows)+len(tab.fds) > maxFiles {
			return nil, fmt.Errorf("open files of %d processes, to %s: more than %d: %w", i+1, taskName(t.PID), maxFiles, kernel.ErrTooLong)
		}
		for _, fd := range tab.fds {
			rows = append(rows, File{PID: t.PID, Comm: t.Comm, FD: fd.FD, Addr: fd.File, Moved: tab.moved,
				Flags: cloexecFlag(fd.CloseOnExec), slot: fd.Slot})
		}
	}
	return r.describe(rows)
}

// cloexecFlag holds what a descriptor adds to the flags of its file, until they
// are read.
func cloexecFlag(set bool) *uint32 {
	var f uint32
	if set {
		f = openCloexec
	}
	return &f
}

type fileReader struct {
	v    *kernel.View
	fd   *fdLayout
	l    *fileLayout
	path *pathLayout
	task *taskLayout
	ns   *reaperLayout
}

func newFileReader(v *kernel.View) (*fileReader, error) {
	r := &fileReader{v: v}
	if err := kernel.Layouts(v.Kernel, &r.fd, &r.l, &r.path, &r.task, &r.ns); err != nil {
		return nil, err
	}
	return r, nil
}

// openTable is the descriptors of one files_struct, which processes can share.
type openTable struct {
	of    []mem.Virt // tasks
	fds   []openFD
	err   error
	held  uint64 // of the budget
	moved bool
}

// tables reads the descriptor tables of tasks, each once.
func (r *fileReader) tables(tasks []Task) (map[mem.Virt]*openTable, error) {
	byAddr := make(map[mem.Virt]*openTable)
	var addrs []mem.Virt
	for _, t := range tasks {
		if t.Files == 0 {
			continue
		}
		if byAddr[t.Files] == nil {
			byAddr[t.Files] = &openTable{}
			addrs = append(addrs, t.Files)
		}
		byAddr[t.Files].of = append(byAddr[t.Files].of, t.Addr)
	}
	left := budget{maxFiles}
	err := r.v.Each(len(addrs)+1, func(i int, w *kernel.Walk) {
		if i == len(addrs) { // all paths are told from there, and each file's walk reads it again
			_ = w.Probe(func() { firstRoot(w, r.ns, r.task, r.path) })
			return
		}
		t := byAddr[addrs[i]]
		left.back(&t.held)
		if t.fds, t.err = nil, nil; !r.used(w, t, addrs[i]) {
			return
		}
		fds := fdTable(w, r.fd, addrs[i])
		if w.OK() && !left.take(w, &t.held, uint64(len(fds))) {
			fds = nil
		}
		t.fds, t.err = fds, w.Err()
		for _, fd := range fds {
			fileAhead(w, r.l, r.path, fd.File)
		}
	}, func(i int) {
		if i < len(addrs) {
			byAddr[addrs[i]].moved = true
		}
	})
	return byAddr, err
}

// used tells whether a task still has the files_struct at addr: one that is exiting
// lets go of it.
func (r *fileReader) used(w *kernel.Walk, t *openTable, addr mem.Virt) bool {
	used := false
	for _, task := range t.of {
		err := w.Try(func() { used = used || w.Follow(task, r.task.Files) == addr })
		used = used || err != nil // then reading the table says what is wrong
	}
	return used
}

// fileAhead reads what a struct file's path and type come from, so that it comes
// while other files are still being found. What it misses and is needed fails later.
func fileAhead(w *kernel.Walk, l *fileLayout, p *pathLayout, file mem.Virt) {
	if !w.View().Snapshot().Batching() {
		return
	}
	_ = w.Probe(func() { w.Ptr(w.Ptr(w.Ptr(file, l.Inode), l.Super), l.SuperMagic) })
	_ = w.Probe(func() { dynamicName(w, p, w.Ptr(w.At(file, l.Path), p.Dentry)) })
	_ = w.Probe(func() { climbAhead(w, p, w.Ptr(w.At(file, l.Path), p.Dentry)) })
	_ = w.Probe(func() { mountsAhead(w, p, w.Ptr(w.At(file, l.Path), p.Mnt)-mem.Virt(p.Mount.Offset)) })
}

// describe fills in what the struct file of each row says, reading each once. Rows
// whose descriptor was closed meanwhile are left out: a file lives as long as a
// descriptor of it, and what lies there afterwards is something else's memory.
func (r *fileReader) describe(rows []File) ([]File, error) {
	first := make(map[mem.Virt]int)
	var of [][]int // rows of each file
	for i := range rows {
		k, ok := first[rows[i].Addr]
		if !ok {
			k = len(of)
			first[rows[i].Addr], of = k, append(of, nil)
		}
		of[k] = append(of[k], i)
	}
	files, open := make([]File, len(of)), make([]bool, len(rows))
	total, texts := budget{maxAllText}, make([]uint64, len(of))
	err := r.v.Each(len(of), func(k int, w *kernel.Walk) {
		held := false
		for _, i := range of[k] {
			open[i] = false
			_ = w.Try(func() { open[i] = w.Follow(rows[i].slot, link) == rows[i].Addr })
			held = held || open[i]
		}
		if held || w.View().Snapshot().Batching() {
			f := r.file(w, rows[of[k][0]].Addr)
			total.back(&texts[k])
			if err := w.Try(func() { total.take(w, &texts[k], textSize(f.Path)) }); err != nil {
				f.Path = nil
				f.Errors = append(f.Errors, "path: "+err.Error())
			}
			files[k] = f
		}
	}, func(k int) { files[k].Moved = true })
	if err != nil {
		return nil, err
	}
	out := rows[:0]
	for i, row := range rows {
		if !open[i] {
			continue
		}
		f := files[first[row.Addr]]
		f.PID, f.Comm, f.FD, f.Addr, f.Moved = row.PID, row.Comm, row.FD, row.Addr, f.Moved || row.Moved
		if f.Flags != nil {
			flags := *f.Flags | *row.Flags
			f.Flags = &flags
		}
		out = append(out, f)
	}
	return out, nil
}

// file reads the struct file at a.
func (r *fileReader) file(w *kernel.Walk, a mem.Virt) (f File) {
	l := r.l
	f.Errors = []string{}
	try := func(part string, read func()) {
		if err := w.Try(read); err != nil {
			f.Errors = append(f.Errors, part+": "+err.Error())
		}
	}
	try("flags", func() {
		if x := uint32(w.Uint(a, l.Flags)); w.OK() {
			f.Flags = &x
		}
	})
	try("pos", func() {
		if x := w.Int(a, l.Pos); w.OK() {
			f.Pos = &x
		}
	})
	try("mount_id", func() {
		mnt := w.Ptr(w.At(a, l.Path), r.path.Mnt) - mem.Virt(r.path.Mount.Offset)
		if x := int(w.Int(mnt, l.MountID)); w.OK() {
			f.MountID = &x
		}
	})
	try("inode", func() {
		inode := w.Ptr(a, l.Inode)
		if x := w.Uint(inode, l.Ino); w.OK() {
			f.Inode = &x
		}
	})
	try("type", func() {
		if s := r.fileType(w, a); w.OK() {
			f.Type = &s
		}
	})
	var root path
	rootErr := w.Try(func() { root = firstRoot(w, r.ns, r.task, r.path) })
	try("path", func() {
		w.Fail(rootErr)
		if s, del := pathText(w, r.path, readPath(w, r.path, w.At(a, l.Path)), root); w.OK() {
			f.Path, f.Deleted = &s, &del
		}
	})
	return f
}

// Magic numbers of the file systems that have no place in a tree
// (include/uapi/linux/magic.h).
const (
	magicAnonInode = 0x09041934
	magicPipe      = 0x50495045
	magicSocket    = 0x534f434b
	magicNamespace = 0x6e736673
	magicPidfd     = 0x50494446 // since 6.9
)

// fileType names the kind of the file at a.
func (r *fileReader) fileType(w *kernel.Walk, a mem.Virt) string {
	inode := w.Ptr(a, r.l.Inode)
	mode := w.Uint(inode, r.l.Mode)
	dentry := w.Ptr(w.At(a, r.l.Path), r.path.Dentry)
	switch w.Uint(w.Ptr(inode, r.l.Super), r.l.SuperMagic) {
	case magicAnonInode:
		return strings.Trim(dentryName(w, r.path, dentry), "[]")
	case magicPipe:
		return typePipe
	case magicSocket:
		return typeSocket
	case magicNamespace:
		return typeNamespace
	case magicPidfd:
		return typePidfd
	}
	if !w.OK() {
		return ""
	}
	s, ok := modeType(mode)
	if !ok {
		w.Failf("inode %v: mode %#o is of no known type", inode, mode)
	}
	if s == typeRegular && isMemfd(w, r.path, dentry) {
		return typeMemfd
	}
	return s
}

// modeType is the S_IFMT part of a mode (include/uapi/linux/stat.h) in words.
func modeType(mode uint64) (s string, ok bool) {
	switch mode & 0o170000 {
	case 0o140000:
		return typeSocket, true
	case 0o120000:
		return typeSymlink, true
	case 0o100000:
		return typeRegular, true
	case 0o060000:
		return typeBlock, true
	case 0o040000:
		return typeDirectory, true
	case 0o020000:
		return typeChar, true
	case 0o010000:
		return typeFIFO, true
	}
	return "", false
}

// isMemfd tells a file of memfd_create(2): it has no place in a tree, and a name
// with a prefix (mm/memfd.c).
func isMemfd(w *kernel.Walk, l *pathLayout, dentry mem.Virt) bool {
	if dynamic := w.Ptr(dentry, l.Op); dynamic == 0 || w.Ptr(dynamic, l.Dname) == 0 {
		return false
	}
	return strings.HasPrefix(dentryName(w, l, dentry), "memfd:")
}

type reaperLayout struct {
	Reaper btf.Field `btf:"pid_namespace.child_reaper"`
}

// firstRoot returns the root directory of pid 1 of the first PID namespace: what
// the machine's own /proc tells paths from.
func firstRoot(w *kernel.Walk, l *reaperLayout, t *taskLayout, p *pathLayout) path {
	ns, err := w.View().Symbol("init_pid_ns")
	if err != nil {
		w.Fail(err)
		return path{}
	}
	init := w.Ptr(ns, l.Reaper)
	if w.OK() && init == 0 {
		w.Failf("pid_namespace %v has no first process", ns)
	}
	return readPath(w, p, w.At(w.Ptr(init, t.FS), t.Root))
}
