package linux

import (
	"errors"
	"fmt"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/paging"
)

// ErrNoMemory is a process without an address space of its own: a kernel thread or
// one that has exited.
var ErrNoMemory = errors.New("the process has no memory of its own")

// Memory returns the address space of the process pid: what the machine's
// /proc/PID/mem reads, but for pages that are swapped out or not yet touched, which
// are faults.
func Memory(v *kernel.View, pid int) (*paging.Space, error) {
	tasks, err := Tasks(v, TaskOptions{PID: pid, Brief: true})
	if err != nil {
		return nil, err
	}
	if len(tasks) == 0 {
		return nil, fmt.Errorf("process %d: %w", pid, ErrNoProcess)
	}
	if tasks[0].MM == 0 {
		return nil, fmt.Errorf("process %d: %w", pid, ErrNoMemory)
	}
	l, err := kernel.Layout[mmLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	var pgd mem.Virt
	if err := v.Do(func(w *kernel.Walk) { pgd = w.Ptr(tasks[0].MM, l.PGD) }); err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return v.Process(pgd)
}
