// Package umbra attaches to a running Linux machine with nothing but its memory.
//
// A program opens a machine by name, takes a view of its kernel, and asks package
// linux what it holds:
//
//	m, err := umbra.Attach(ctx, "web1", umbra.Options{})
//	defer m.Close()
//	tasks, err := linux.Tasks(m.View(ctx), linux.TaskOptions{})
package umbra

import (
	"context"
	"errors"
	"fmt"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/all"
)

// Options of Attach. The zero value needs nothing but the machine.
type Options struct {
	Source  all.Options
	Kernel  kernel.Options // with Kernel.Cache nil and NoCache false, the user's cache is used
	NoCache bool
}

// Machine is an attached machine.
type Machine struct {
	Source source.Source
	Kernel *kernel.Kernel

	opts Options
}

// Attach opens the machine that target names (see source/all.Open) and finds the
// kernel that runs in it.
func Attach(ctx context.Context, target string, opts Options) (*Machine, error) {
	src, err := all.Open(ctx, target, opts.Source)
	if err != nil {
		return nil, err
	}
	m, err := AttachSource(ctx, src, opts)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return m, nil
}

// AttachSource finds the kernel in a source that is open already. The machine
// closes it.
func AttachSource(ctx context.Context, src source.Source, opts Options) (*Machine, error) {
	if opts.Kernel.Cache == nil && !opts.NoCache {
		// Without a cache directory attaching is slower, nothing else.
		opts.Kernel.Cache, _ = kernel.OpenCache("")
	}
	k, err := kernel.Attach(ctx, src, opts.Kernel)
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", src.Info().Name, err)
	}
	return &Machine{Source: src, Kernel: k, opts: opts}, nil
}

// View returns a fresh view of the machine: what one answer is computed from.
func (m *Machine) View(ctx context.Context) *kernel.View { return m.Kernel.View(ctx, mem.Options{}) }

// Refresh makes sure that Kernel is the kernel that runs now. When the machine was
// rebooted since it was attached to, the new kernel is found and rebooted is true;
// views taken before show the old one. A machine that ended gives mem.ErrGone, one
// that is still booting kernel.ErrNoKernel.
func (m *Machine) Refresh(ctx context.Context) (rebooted bool, err error) {
	err = m.Kernel.Check(ctx)
	if !errors.Is(err, kernel.ErrRebooted) {
		return false, err
	}
	k, err := kernel.Attach(ctx, m.Source, m.opts.Kernel)
	if err != nil {
		return true, fmt.Errorf("%s was rebooted: %w", m.Source.Info().Name, err)
	}
	m.Kernel = k
	return true, nil
}

// Close keeps what was learned of the kernel's types for the next attach and lets
// go of the machine.
func (m *Machine) Close() error {
	// A cache that cannot be written costs time at the next attach, nothing else.
	_ = m.Kernel.Save()
	return m.Source.Close()
}
