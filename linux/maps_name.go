package linux

import (
	"errors"
	"fmt"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Flags of an area, include/linux/mm.h.
const (
	vmRead     = 0x01
	vmWrite    = 0x02
	vmExec     = 0x04
	vmMayShare = 0x80
)

// area reads the vm_area_struct of a, whose place is known, and resets the rest.
func (r *mapReader) area(w *kernel.Walk, s *addressSpace, a *area) area {
	l := r.l
	row := area{}
	row.Addr, row.First, row.Limit = a.Addr, a.First, a.Limit
	row.Start, row.End = fmt.Sprintf("%#x", uint64(a.First)), fmt.Sprintf("%#x", uint64(a.Limit))
	row.Errors = []string{}
	try := func(part string, read func()) {
		if err := w.Try(read); err != nil {
			row.Errors = append(row.Errors, part+": "+err.Error())
		}
	}
	var pgoff uint64
	try("vm_area_struct", func() {
		start, end := w.Ptr(a.Addr, l.Start), w.Ptr(a.Addr, l.End)
		if w.OK() && (start != a.First || end != a.Limit) {
			w.Failf("goes from %v to %v, in the tree from %v to %v", start, end, a.First, a.Limit)
		}
		perms := permsText(w.Uint(a.Addr, l.Flags))
		file := w.Ptr(a.Addr, l.File)
		pgoff = w.Uint(a.Addr, l.PgOff) * mem.PageSize
		if w.OK() {
			row.Perms, row.file = &perms, file
		}
	})
	if row.Perms == nil {
		return row
	}
	if row.file == 0 { // the kernel prints zeros for memory without a file
		var zero uint64
		device := deviceText(0)
		row.Offset, row.Device, row.Inode = &zero, &device, &zero
	} else {
		row.Offset = &pgoff
	}
	try("path", func() {
		if name := r.areaName(w, s, &row); w.OK() && name != "" {
			row.Path = &name
		}
	})
	return row
}

func permsText(flags uint64) string {
	b := []byte("---p")
	for i, f := range []uint64{vmRead, vmWrite, vmExec} {
		if flags&f != 0 {
			b[i] = "rwx"[i]
		}
	}
	if flags&vmMayShare != 0 {
		b[3] = 's'
	}
	return string(b)
}

// deviceText renders a dev_t (include/linux/kdev_t.h) as /proc/PID/maps does.
func deviceText(dev uint64) string { return fmt.Sprintf("%02x:%02x", dev>>20, dev&(1<<20-1)) }

// areaName returns the name of an area that is not its file's: "" when it has none
// (fs/proc/task_mmu.c, get_vma_name).
func (r *mapReader) areaName(w *kernel.Walk, s *addressSpace, a *area) string {
	anon := r.anonName(w, a)
	if a.file != 0 {
		if anon != "" { // since 6.2
			return "[anon_shmem:" + anon + "]"
		}
		return ""
	}
	if name := r.givenName(w, a); name != "" || !w.OK() {
		return name
	}
	first, limit := uint64(a.First), uint64(a.Limit)
	heap := first <= s.brk[1] && limit >= s.brk[0]
	if r.l.ZeroPage.Known {
		heap = first < s.brk[1] && limit > s.brk[0]
	}
	switch {
	case heap:
		return "[heap]"
	case first <= s.startStack && limit >= s.startStack:
		return "[stack]"
	case anon != "":
		return "[anon:" + anon + "]"
	}
	return ""
}

// maxAnonName is ANON_VMA_NAME_MAX_LEN (include/linux/mm.h), with its NUL.
const maxAnonName = 80

// anonName returns the name a process gave to an area, "" without.
func (r *mapReader) anonName(w *kernel.Walk, a *area) string {
	l := r.l
	if !l.AnonName.Known || !l.NameText.Known {
		return ""
	}
	if _, used := w.View().Symbols().Lookup("anon_vma_name_alloc"); !used {
		return "" // there is room for it, but it is not configured
	}
	if a.file != 0 && l.AnonName.Offset == l.Shared.Offset {
		return "" // until 6.2 the place holds something else for files
	}
	name := w.Ptr(a.Addr, l.AnonName)
	if name == 0 || !w.OK() {
		return ""
	}
	return w.String(w.At(name, l.NameText), maxAnonName)
}

// givenName returns the name an area's operations make up, "" without.
func (r *mapReader) givenName(w *kernel.Walk, a *area) string {
	ops := w.Ptr(a.Addr, r.l.Ops)
	if ops == 0 || !w.OK() {
		return ""
	}
	fn := w.Ptr(ops, r.l.OpsName)
	if fn == 0 || !w.OK() {
		return ""
	}
	sym, off, ok := w.View().Symbols().Symbolize(fn)
	switch {
	case !ok || off != 0:
		w.Failf("area %v: its name function %v is no function of the kernel", a.Addr, fn)
	case sym.Name == "special_mapping_name": // vdso, vvar, uprobes, …
		return w.String(w.Ptr(w.Ptr(a.Addr, r.l.Private), r.l.Special), maxAnonName)
	case sym.Name == "gate_vma_name":
		return "[vsyscall]"
	default:
		w.Failf("area %v: names made by %s are not known", a.Addr, sym.Name)
	}
	return ""
}

// mappedFile is what a line of /proc/PID/maps says of an area's file.
type mappedFile struct {
	addr   mem.Virt
	path   *string
	device *string
	inode  *uint64
	moved  bool
	errors []string
}

// takeFile fills in what is known of a's file.
func (a *area) takeFile(f *mappedFile) {
	if a.Path == nil {
		a.Path = f.path
	}
	a.Device, a.Inode, a.Moved = f.device, f.inode, a.Moved || f.moved
	a.Errors = append(a.Errors, f.errors...)
}

// mappedFile reads the struct file at addr.
func (r *mapReader) mappedFile(w *kernel.Walk, addr mem.Virt) mappedFile {
	f := mappedFile{addr: addr}
	try := func(part string, read func()) {
		if err := w.Try(read); err != nil {
			f.errors = append(f.errors, part+": "+err.Error())
		}
	}
	var at, inode mem.Virt
	fileErr := w.Try(func() { at, inode = r.userFile(w, addr) })
	try("inode", func() {
		w.Fail(fileErr)
		ino, dev := w.Uint(inode, r.file.Ino), deviceText(w.Uint(w.Ptr(inode, r.file.Super), r.l.DevT))
		if w.OK() {
			f.inode, f.device = &ino, &dev
		}
	})
	var root path
	rootErr := w.Try(func() { root = firstRoot(w, r.ns, r.task, r.path) })
	try("path", func() {
		w.Fail(fileErr)
		w.Fail(rootErr)
		if s, _ := pathText(w, r.path, readPath(w, r.path, at), root); w.OK() {
			f.path = &s
		}
	})
	return f
}

// userFile returns where a file keeps the path a process opened, and the inode it
// opened. They are not the file's own when a file system put another's file in its
// place, as overlayfs does (include/linux/fs.h, file_user_path).
func (r *mapReader) userFile(w *kernel.Walk, file mem.Virt) (at, inode mem.Virt) {
	if r.l.UserPath.Known && w.Uint(file, r.l.FileMode)&mayBacking != 0 {
		at = w.At(file, r.l.UserPath)
		if r.isPath(w, at) {
			return at, w.Ptr(w.Ptr(at, r.path.Dentry), r.path.Inode)
		}
	}
	return w.At(file, r.file.Path), w.Follow(file, r.file.Inode)
}

// mayBacking is FMODE_BACKING (include/linux/fs.h) of 6.8, and of 6.14 and stable
// releases of its time, where the other bit means FMODE_NONOTIFY.
const mayBacking = 1<<24 | 1<<25

// isPath tells whether a struct path lies at a: a mount and a dentry of one file
// system. Behind a file that is not a backing one something else does.
func (r *mapReader) isPath(w *kernel.Walk, a mem.Virt) bool {
	var mounted, of mem.Virt
	err := w.Probe(func() {
		mounted = w.Ptr(w.Ptr(a, r.path.Mnt), r.l.MountSB)
		of = w.Ptr(w.Ptr(a, r.path.Dentry), r.l.DentrySB)
	})
	if errors.Is(err, mem.ErrPending) {
		w.Fail(err)
	}
	return err == nil && mounted != 0 && mounted == of
}
