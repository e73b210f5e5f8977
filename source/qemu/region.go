package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/mem"
)

// region is a run of guest RAM and where its first byte lies.
type region struct {
	mem.Extent
	ram ram
	off uint64
}

// block is a run of guest RAM at a host-virtual address of the QEMU process.
type block struct {
	mem.Extent
	hva uint64
}

// opener turns host-virtual ranges into backends, opening each file once.
type opener struct {
	p     *process
	maps  []mapping
	mem   *processMemory // nil until first needed
	files map[fileID]fileRAM
	cows  map[uint64]cowRAM // by the mapping's start
}

type fileID struct{ dev, inode uint64 }

func newOpener(p *process) (*opener, error) {
	maps, err := p.mappings()
	if err != nil {
		return nil, p.permission(err)
	}
	return &opener{p: p, maps: maps, files: map[fileID]fileRAM{}, cows: map[uint64]cowRAM{}}, nil
}

// close lets go of everything opened. After success the backends are the Source's.
func (o *opener) close() {
	for _, f := range o.files {
		f.close()
	}
	for _, c := range o.cows {
		c.close()
	}
	if o.mem != nil {
		o.mem.release()
	}
}

// regions opens what holds b. A block may span several mappings when the kernel
// split one.
func (o *opener) regions(b block) ([]region, error) {
	var rs []region
	for _, m := range o.maps {
		if b.Size == 0 {
			break
		}
		if m.end <= b.hva {
			continue
		}
		if m.start > b.hva || m.perms[0] != 'r' {
			break
		}
		n := min(b.Size, m.end-b.hva)
		r, err := o.region(m, block{Extent: mem.Extent{Start: b.Start, Size: n}, hva: b.hva})
		if err != nil {
			return nil, err
		}
		rs = append(rs, r)
		b.Start, b.Size, b.hva = b.Start+mem.Phys(n), b.Size-n, b.hva+n
	}
	if b.Size != 0 {
		return nil, fmt.Errorf("RAM at %v: nothing is mapped at %#x in QEMU process %d", b.Start, b.hva, o.p.pid)
	}
	return rs, nil
}

// region opens the part of m that holds b.
func (o *opener) region(m mapping, b block) (region, error) {
	if m.shared() {
		f, err := o.file(m)
		return region{Extent: b.Extent, ram: f, off: b.hva - m.start + m.offset}, err
	}
	if err := o.needMemory(); err != nil {
		return region{}, err
	}
	if m.anonymous() {
		return region{Extent: b.Extent, ram: processRAM{o.mem}, off: b.hva}, nil
	}
	if c, ok := o.cows[m.start]; ok {
		return region{Extent: b.Extent, ram: c, off: b.hva}, nil
	}
	f, err := o.openMapped(m)
	if err != nil {
		return region{}, err
	}
	c := cowRAM{processMemory: o.mem, file: newHandle(f), start: m.start, off: m.offset}
	o.cows[m.start] = c
	return region{Extent: b.Extent, ram: c, off: b.hva}, nil
}

func (o *opener) needMemory() error {
	if o.mem != nil {
		return nil
	}
	m, err := openProcessMemory(o.p)
	if err != nil {
		return o.p.permission(err)
	}
	o.mem = m
	return nil
}

func (o *opener) file(m mapping) (fileRAM, error) {
	id := fileID{m.dev, m.inode}
	if f, ok := o.files[id]; ok {
		return f, nil
	}
	f, err := o.openMapped(m)
	if err != nil {
		return fileRAM{}, err
	}
	r := fileRAM{f: newHandle(f), what: "shared memory-backend-file"}
	switch {
	case strings.HasPrefix(m.path, "/memfd:"):
		r.what = "shared memfd"
	case strings.HasPrefix(m.path, "/dev/zero"):
		r.what = "shared anonymous memory"
	}
	o.files[id] = r
	return r, nil
}

// openMapped opens the file behind m, for reading, through the descriptor QEMU
// keeps of it: the path may lie in another mount namespace or be deleted, and a
// memfd has none.
func (o *opener) openMapped(m mapping) (*os.File, error) {
	fds, err := os.ReadDir(o.p.path("fd"))
	if err != nil {
		return nil, o.p.permission(err)
	}
	for _, e := range fds {
		name := o.p.path("fd", e.Name())
		if _, err := strconv.Atoi(e.Name()); err != nil || !sameFile(name, m) {
			continue
		}
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, o.p.permission(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != m.inode || st.Mode&unix.S_IFMT != unix.S_IFREG {
			f.Close() // the number came to mean another file
			continue
		}
		return f, nil
	}
	// Anonymous shared memory has no descriptor; the kernel lets a privileged process
	// open it by its mapping.
	f, err := os.OpenFile(o.p.path("map_files", fmt.Sprintf("%x-%x", m.start, m.end)), os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("RAM file %q: QEMU process %d holds no descriptor of it: %w", m.path, o.p.pid, err)
	}
	return f, nil
}

// sameFile tells whether name leads to the file m maps. Some file systems show
// another device number in mappings than in stat: there inode and path decide.
func sameFile(name string, m mapping) bool {
	var st unix.Stat_t
	if unix.Stat(name, &st) != nil || st.Ino != m.inode || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	link, err := os.Readlink(name)
	return st.Dev == m.dev || err == nil && link == m.path
}

// permission explains an access that was denied; another error it returns as is.
func (p *process) permission(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return p.explain(err)
	}
	hint := "run umbra as root, or give it the right: setcap cap_sys_ptrace=ep /path/to/umbra"
	if uid, uerr := p.owner(); uerr == nil && int(uid) != os.Getuid() {
		hint = fmt.Sprintf("run umbra as root or as user id %d, which runs the machine, "+
			"or give it the right: setcap cap_sys_ptrace=ep /path/to/umbra", uid)
	}
	return &TargetError{
		Err:  fmt.Errorf("%w: reading QEMU process %d needs its user id or CAP_SYS_PTRACE: %w", ErrPermission, p.pid, err),
		Hint: hint,
	}
}
