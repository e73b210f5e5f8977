package linux

import (
	"fmt"
	"strings"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Mapping is one area of a process's address space, a line of /proc/PID/maps. What
// could not be read is nil.
type Mapping struct {
	PID    int      `json:"pid"`
	Comm   string   `json:"comm"`
	Start  string   `json:"start"` // "0x7ffd1c2e8000"
	End    string   `json:"end"`   // the first address behind it
	Perms  *string  `json:"perms"`
	Offset *uint64  `json:"offset"` // in the file, bytes
	Device *string  `json:"device"` // "00:15", both numbers hexadecimal
	Inode  *uint64  `json:"inode"`
	Path   *string  `json:"path"`   // of the file, or "[heap]" and its like; nil when it has no name. A newline is one, not "\012"
	Moved  bool     `json:"moved"`  // memory kept changing while this was read
	Errors []string `json:"errors"` // parts that could not be read

	First mem.Virt `json:"-"` // the address Start tells
	Limit mem.Virt `json:"-"` // the address End tells
	Addr  mem.Virt `json:"-"` // of the vm_area_struct
}

// Line renders m as /proc/PID/maps does (fs/proc/task_mmu.c, show_map_vma), without
// the newline at its end. It fails when a part of m could not be read.
func (m *Mapping) Line() (string, error) {
	if len(m.Errors) > 0 || m.Perms == nil || m.Offset == nil || m.Device == nil || m.Inode == nil {
		return "", fmt.Errorf("mapping at %v of %s: %s", m.First, taskName(m.PID), strings.Join(m.Errors, "; "))
	}
	const nameColumn = 25 + 6*8 - 1
	s := fmt.Sprintf("%08x-%08x %s %08x %s %d ", uint64(m.First), uint64(m.Limit), *m.Perms, *m.Offset, *m.Device, *m.Inode)
	if m.Path == nil {
		return s, nil
	}
	return fmt.Sprintf("%-*s %s", nameColumn, s, strings.ReplaceAll(*m.Path, "\n", `\012`)), nil
}

// MapOptions chooses what Maps lists.
type MapOptions struct {
	PID int // only this process; 0 means all
}

// maxMappings bounds the areas of all processes together: more would not fit the
// memory an answer may take.
const maxMappings = 1 << 19

// Maps lists the areas of the processes' address spaces, by ascending pid and
// address. A process whose areas cannot be found is a finding, and an error when it
// is the only one asked for.
func Maps(v *kernel.View, opts MapOptions) ([]Mapping, error) {
	return confirmed(v, func() ([]Mapping, error) { return listMaps(v, opts) })
}

// listMaps is Maps for one look.
func listMaps(v *kernel.View, opts MapOptions) ([]Mapping, error) {
	r, err := newMapReader(v)
	if err != nil {
		return nil, err
	}
	tasks, err := Tasks(v, TaskOptions{Brief: true, PID: opts.PID})
	if err != nil {
		return nil, err
	}
	spaces, all, err := r.addressSpaces(tasks)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, t := range tasks {
		s := spaces[t.MM]
		if s == nil {
			continue // a kernel thread or a zombie
		}
		if s.err != nil && opts.PID != 0 {
			return nil, fmt.Errorf("mappings of %s: %w", taskName(t.PID), s.err)
		}
		if s.err != nil {
			v.Find(taskName(t.PID), "mappings: %v", s.err)
		}
		if total += len(s.areas); total > maxMappings {
			return nil, fmt.Errorf("mappings of the processes to %s: more than %d: %w", taskName(t.PID), maxMappings, kernel.ErrTooLong)
		}
	}
	if err := r.describe(all); err != nil {
		return nil, err
	}
	rows := make([]Mapping, 0, total)
	for _, t := range tasks {
		s := spaces[t.MM]
		if s == nil || s.err != nil {
			continue
		}
		for i := range s.areas {
			row := s.areas[i].Mapping
			row.PID, row.Comm, row.Moved = t.PID, t.Comm, row.Moved || s.moved
			if row.Perms == nil {
				v.Find(taskName(t.PID), "area at %v: %s", row.First, strings.Join(row.Errors, "; "))
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// mapLayout is include/linux/mm_types.h, mm.h and arch/x86/include/asm/mmu.h.
type mapLayout struct {
	Count      btf.Field `btf:"mm_struct.map_count"`
	TotalVM    btf.Field `btf:"mm_struct.total_vm"`
	LockSeq    btf.Field `btf:"mm_struct.mm_lock_seq ?"` // since 6.4: grows with every change
	Maple      btf.Field `btf:"mm_struct.mm_mt ?"`       // since 6.1
	Tree       btf.Field `btf:"mm_struct.mm_rb ?"`       // before
	Node       btf.Field `btf:"vm_area_struct.vm_rb ?"`
	Next       btf.Field `btf:"vm_area_struct.vm_next ?"`
	Prev       btf.Field `btf:"vm_area_struct.vm_prev ?"`
	List       btf.Field `btf:"mm_struct.mmap ?"`
	StartBrk   btf.Field `btf:"mm_struct.start_brk"`
	Brk        btf.Field `btf:"mm_struct.brk"`
	StartStack btf.Field `btf:"mm_struct.start_stack"`
	ContextFl  btf.Field `btf:"mm_struct.context.flags ?"`       // since 5.16
	Compat     btf.Field `btf:"mm_struct.context.ia32_compat ?"` // before

	Start    btf.Field `btf:"vm_area_struct.vm_start"`
	End      btf.Field `btf:"vm_area_struct.vm_end"`
	Flags    btf.Field `btf:"vm_area_struct.vm_flags"`
	PgOff    btf.Field `btf:"vm_area_struct.vm_pgoff"`
	File     btf.Field `btf:"vm_area_struct.vm_file"`
	Ops      btf.Field `btf:"vm_area_struct.vm_ops"`
	Private  btf.Field `btf:"vm_area_struct.vm_private_data"`
	AnonName btf.Field `btf:"vm_area_struct.anon_name ?"` // since 5.17, where it is configured
	Shared   btf.Field `btf:"vm_area_struct.shared"`
	NameText btf.Field `btf:"anon_vma_name.name ?"`
	OpsName  btf.Field `btf:"vm_operations_struct.name"`
	Special  btf.Field `btf:"vm_special_mapping.name"`

	FileMode btf.Field `btf:"file.f_mode"`
	UserPath btf.Field `btf:"backing_file.user_path ?"` // since 6.8
	DevT     btf.Field `btf:"super_block.s_dev"`
	MountSB  btf.Field `btf:"vfsmount.mnt_sb"`
	DentrySB btf.Field `btf:"dentry.d_sb"`
	ZeroPage btf.Field `btf:"mm_struct.ksm_zero_pages ?"` // since 6.6, as the strict test for the heap
}

type mapReader struct {
	v     *kernel.View
	l     *mapLayout
	file  *fileLayout
	path  *pathLayout
	task  *taskLayout
	ns    *reaperLayout
	maple *mapleLayout // nil before 6.1
	rb    *rbLayout
}

func newMapReader(v *kernel.View) (*mapReader, error) {
	r := &mapReader{v: v}
	var err error
	if err = kernel.Layouts(v.Kernel, &r.l, &r.file, &r.path, &r.task, &r.ns, &r.rb); err != nil {
		return nil, err
	}
	switch {
	case r.l.Maple.Known:
		if r.maple, err = kernel.Layout[mapleLayout](v.Kernel); err != nil {
			return nil, err
		}
	case !r.l.Tree.Known || !r.l.Node.Known || !r.l.Next.Known || !r.l.Prev.Known || !r.l.List.Known:
		return nil, fmt.Errorf("mm_struct has no tree of areas that is known: %w", btf.ErrNoField)
	}
	return r, nil
}
