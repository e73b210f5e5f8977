// Package linux reads the objects of an attached Linux kernel: tasks, sockets,
// files, modules. There is one file per kernel subsystem. Layouts come from the
// kernel's own types, newest first; never from its version.
package linux

import (
	"encoding/binary"
	"errors"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// word returns the little-endian 8-byte word at off.
func word(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }

// maxList bounds the members of any one list, and maxString a name in the kernel
// (a path component has at most NAME_MAX, 255 bytes).
const (
	maxList   = 1 << 20
	maxString = 4096
)

// confirmed returns what list makes of v, run again where something does not add up on
// a machine that runs (see kernel.View.Confirm).
func confirmed[T any](v *kernel.View, list func() (T, error)) (rows T, err error) {
	err = v.Confirm(func() (err error) {
		rows, err = list()
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return rows, nil
}

// list calls visit with each node of the doubly linked list whose head is at head
// (include/linux/list.h), until it returns false. The walk fails when the list
// does not lead back to its head.
func list(w *kernel.Walk, head mem.Virt, visit func(node mem.Virt) bool) {
	seen := make(map[mem.Virt]struct{})
	for p := w.Pointer(head); w.OK() && p != head; p = w.Pointer(p) {
		if _, again := seen[p]; again {
			w.Failf("list at %v, entry %v: %w", head, p, kernel.ErrLoop)
			return
		}
		if len(seen) == maxList {
			w.Failf("list at %v: %w", head, kernel.ErrTooLong)
			return
		}
		seen[p] = struct{}{}
		if !visit(p) {
			return
		}
	}
}

// hlist calls visit with each node of the list whose head is at head, until it
// returns false. Chains that end in a marker instead of NULL (include/linux/list_nulls.h)
// are followed to it.
func hlist(w *kernel.Walk, head mem.Virt, visit func(node mem.Virt) bool) {
	seen := make(map[mem.Virt]struct{})
	for p := w.Pointer(head); w.OK() && p != 0 && p&1 == 0; p = w.Pointer(p) {
		if _, again := seen[p]; again {
			w.Failf("hash chain at %v, entry %v: %w", head, p, kernel.ErrLoop)
			return
		}
		if len(seen) == maxList {
			w.Failf("hash chain at %v: %w", head, kernel.ErrTooLong)
			return
		}
		seen[p] = struct{}{}
		if !visit(p) {
			return
		}
	}
}

// message returns why a part of an object could not be read, for a row's errors,
// and "" when it could.
func message(part string, err error) string {
	if err == nil || errors.Is(err, mem.ErrPending) {
		return ""
	}
	return part + ": " + err.Error()
}
