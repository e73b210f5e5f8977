package linux

import (
	"math/bits"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// fdLayout is include/linux/fdtable.h.
type fdLayout struct {
	Table       btf.Field `btf:"files_struct.fdt"`
	Max         btf.Field `btf:"fdtable.max_fds"`
	Files       btf.Field `btf:"fdtable.fd"`
	Open        btf.Field `btf:"fdtable.open_fds"`
	CloseOnExec btf.Field `btf:"fdtable.close_on_exec"`
}

// Bounds of one process's descriptors: how far its table reaches (fs.nr_open can be
// raised, but a table is as large as its highest descriptor), and how many are open.
const (
	maxFDTable = 1 << 24
	maxFDs     = 1 << 20
)

// fdAhead is how much of a descriptor array is read in the bitmaps' round, before it
// is known to be in use, in bytes.
const fdAhead = 8 * mem.PageSize

// openFD is an open descriptor.
type openFD struct {
	FD          int
	File        mem.Virt // of the struct file
	CloseOnExec bool
	Slot        mem.Virt // where the table holds File
}

// fdTable returns the open descriptors of the files_struct at files, ascending. A
// descriptor that has been reserved but has no file yet is not open (fs/file.c).
func fdTable(w *kernel.Walk, l *fdLayout, files mem.Virt) []openFD {
	table := w.Follow(files, l.Table)
	size := w.Uint(table, l.Max)
	if w.OK() && size > maxFDTable {
		w.Failf("descriptor table %v: %d descriptors: %w", table, size, kernel.ErrTooLong)
	}
	array := w.Ptr(table, l.Files)
	open := w.Ptr(table, l.Open)
	cloexec := w.Ptr(table, l.CloseOnExec)
	if !w.OK() {
		return nil
	}
	words := (size + 63) / 64
	var openBits, execBits []byte
	openErr := w.Try(func() { openBits = w.Bytes(open, words*8) })
	execErr := w.Try(func() { execBits = w.Bytes(cloexec, words*8) })
	if w.View().Snapshot().Batching() {
		_ = w.Probe(func() { w.Bytes(array, min(size*8, fdAhead)) })
	}
	w.Fail(openErr)
	w.Fail(execErr)
	if !w.OK() {
		return nil
	}
	var out []openFD
	var missed error
	for i := range int(words) {
		set := word(openBits, i*8)
		if left := size - uint64(i)*64; left < 64 {
			set &= 1<<left - 1
		}
		if set == 0 {
			continue
		}
		if len(out) > maxFDs {
			w.Failf("descriptor table %v: more than %d descriptors: %w", table, maxFDs, kernel.ErrTooLong)
			return nil
		}
		// The array's later pages too, before giving up: they come in one round.
		err := w.Try(func() { out = fdWord(w, out, array, i*64, set, word(execBits, i*8)) })
		if missed == nil {
			missed = err
		}
	}
	w.Fail(missed)
	return out
}

// fdWord appends the descriptors from base on whose bits are set in open.
func fdWord(w *kernel.Walk, out []openFD, array mem.Virt, base int, open, cloexec uint64) []openFD {
	slots := w.Bytes(array+mem.Virt(base*8), uint64(bits.Len64(open))*8)
	for i := range len(slots) / 8 {
		file := mem.Virt(word(slots, i*8))
		if open&(1<<i) != 0 && file != 0 {
			out = append(out, openFD{base + i, file, cloexec&(1<<i) != 0, array + mem.Virt((base+i)*8)})
		}
	}
	return out
}
