package linux

import (
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// vsyscallNone is the last enumerator of arch/x86/entry/vsyscall/vsyscall_64.c: no
// process has the page.
const vsyscallNone = 2

// gateArea returns the area of the vsyscall page, which all processes that have it
// share and which is in no process's tree; nil when this kernel gives it to none.
func (r *mapReader) gateArea(w *kernel.Walk) *area {
	vma, err := w.View().Symbol("gate_vma")
	if err != nil {
		return nil // not configured
	}
	mode, err := w.View().Symbol("vsyscall_mode")
	if err != nil {
		w.Fail(err)
		return nil
	}
	if w.U32(mode) == vsyscallNone || !w.OK() {
		return nil
	}
	a := &area{}
	a.Addr, a.First, a.Limit = vma, w.Ptr(vma, r.l.Start), w.Ptr(vma, r.l.End)
	return a
}

// hasGate tells whether the process of an mm_struct has the vsyscall page: 64-bit
// ones have.
func (r *mapReader) hasGate(w *kernel.Walk, mm mem.Virt) bool {
	const hasVsyscall = 1 << 1 // MM_CONTEXT_HAS_VSYSCALL, arch/x86/include/asm/mmu.h
	switch {
	case r.l.ContextFl.Known:
		return w.Uint(mm, r.l.ContextFl)&hasVsyscall != 0
	case r.l.Compat.Known:
		return w.Uint(mm, r.l.Compat) == 0
	}
	return true // a kernel without 32-bit processes
}
