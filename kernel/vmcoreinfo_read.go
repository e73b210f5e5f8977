package kernel

import (
	"fmt"
	"slices"

	"github.com/umbravm/umbra/paging"
)

// VMCoreInfo returns the text that the running kernel keeps for dump tools
// (kernel/crash_core.c; kernel/vmcore_info.c since 6.9), checked to be that.
func (v *View) VMCoreInfo() (text []byte, err error) {
	data, err := v.Symbol("vmcoreinfo_data")
	if err != nil {
		return nil, err
	}
	size, err := v.Symbol("vmcoreinfo_size")
	if err != nil {
		return nil, err
	}
	err = v.Do(func(w *Walk) {
		at, n := w.Pointer(data), w.Word(size)
		if w.OK() && n > maxVMCoreInfo {
			w.Failf("vmcoreinfo of %d bytes: %w", n, ErrTooLong)
		}
		text = w.Bytes(at, n)
	})
	if err == nil {
		_, err = ParseVMCoreInfo(text)
	}
	if err != nil {
		return nil, fmt.Errorf("read vmcoreinfo: %w", err)
	}
	return text, nil
}

// Image returns where the kernel's image is mapped: ascending runs, all at the same
// distance from physical memory.
func (k *Kernel) Image() []paging.Mapping {
	return slices.Clone(k.image.runs)
}
