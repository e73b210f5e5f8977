package linux

import (
	"errors"
	"fmt"
	"slices"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// ErrNoProcess is a process id that no process has.
var ErrNoProcess = errors.New("no such process")

// Environment is what a process finds in /proc/PID/environ.
type Environment struct {
	PID    int      `json:"pid"`
	Comm   string   `json:"comm"`
	Env    []string `json:"env"`    // NAME=VALUE each; nil when it could not be read
	Moved  bool     `json:"moved"`  // memory kept changing while this was read
	Errors []string `json:"errors"` // why it could not be read

	Raw []byte `json:"-"` // as in /proc/PID/environ
}

// Env returns the environment of the process pid, or of all processes with pid 0.
// It is the memory that held the environment when the program started
// (fs/proc/base.c, environ_read): a program may have changed it since. Kernel
// threads and zombies have none.
func Env(v *kernel.View, pid int) ([]Environment, error) {
	tasks, err := Tasks(v, TaskOptions{Brief: true, PID: pid})
	if err != nil {
		return nil, err
	}
	if pid != 0 && len(tasks) == 0 {
		return nil, fmt.Errorf("process %d: %w", pid, ErrNoProcess)
	}
	l, err := kernel.Layout[mmLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	of, err := kernel.Layout[taskLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	rows, held := make([]Environment, len(tasks)), make([]uint64, len(tasks))
	total := budget{maxAllEnv}
	err = v.Each(len(tasks), func(i int, w *kernel.Walk) {
		t := &tasks[i]
		total.back(&held[i])
		row := Environment{PID: t.PID, Comm: t.Comm, Env: []string{}, Errors: []string{}, Moved: t.Moved}
		err := w.Try(func() {
			// It may have executed another program meanwhile, or ended.
			if mm := w.Follow(t.Addr, of.MM); !t.KernelThread {
				row.Raw = l.environ(w, mm, &total, &held[i])
			}
		})
		if s := message("env", err); s != "" {
			row.Errors = append(slices.Clone(t.Errors), s)
		}
		if row.Env = splitArgs(row.Raw); err != nil {
			row.Env = nil
		}
		rows[i] = row
	}, func(i int) { rows[i].Moved = true })
	return rows, err
}

// maxAllEnv bounds the environments of all processes together, in bytes.
const maxAllEnv = 32 << 20

// environ returns what /proc/PID/environ holds.
func (l *mmLayout) environ(w *kernel.Walk, mm mem.Virt, total *budget, held *uint64) []byte {
	if mm == 0 {
		return nil
	}
	w.Guard(mm, l.EnvEnd)
	start, end := w.Uint(mm, l.EnvStart), w.Uint(mm, l.EnvEnd)
	if !w.OK() || end == 0 || start >= end {
		return nil
	}
	if end-start > maxArgs {
		w.Failf("%d bytes of environment: %w", end-start, kernel.ErrTooLong)
		return nil
	}
	if !total.take(w, held, end-start) {
		return nil
	}
	space, err := w.View().Process(w.Ptr(mm, l.PGD))
	if err != nil {
		w.Fail(err)
		return nil
	}
	var b []byte
	w.In(space, func() { b = pagewise(w, mem.Virt(start), end-start) })
	return b
}

// pagewise is Walk.Bytes for what may span pages: all of them are tried before one
// that is missing ends the walk, so that they come in one round.
func pagewise(w *kernel.Walk, a mem.Virt, n uint64) []byte {
	if n > kernel.MaxRead {
		w.Failf("read %d bytes at %v: %w", n, a, kernel.ErrTooLong)
		return nil
	}
	buf := make([]byte, n)
	var first error
	for done := uint64(0); done < n; {
		at := a + mem.Virt(done)
		chunk := min(n-done, uint64(mem.PageSize-at&(mem.PageSize-1)))
		err := w.Try(func() { w.Read(at, buf[done:done+chunk]) })
		first = firstError(first, err)
		done += chunk
	}
	if first != nil {
		w.Fail(first)
		return nil
	}
	return buf
}
