// Package qemu is the source that reads a running QEMU machine, under KVM or TCG,
// through the host: RAM from the shared file behind it or from the QEMU process's
// own memory, where the guest has that RAM and its registers from QEMU's monitor.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/umbravm/umbra/internal/qmp"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

var (
	_ source.Source         = (*Source)(nil)
	_ source.RegisterReader = (*Source)(nil)
	_ source.Pauser         = (*Source)(nil)
	_ source.Refresher      = (*Source)(nil)
	_ source.HoleFinder     = (*Source)(nil)
)

// Source is one running QEMU machine.
type Source struct {
	p       *process
	cfg     *config
	name    string
	qmp     *qmp.Client // nil when there is none to talk to
	qmpErr  error       // why qmp is nil
	open    *opener
	regions []region // ascending, not overlapping
	info    source.Info
	batch   batch
	seen    time.Time // when the process was last seen to run
	guard   *watchdog
	resume  func() error // set while this source keeps the machine paused
}

// Open finds the machine that target names, by name, PID or path of its QMP
// socket, and attaches to it. The error is a *TargetError for a target that cannot
// be opened as named.
func Open(ctx context.Context, target string) (*Source, error) {
	p, args, err := find(ctx, target)
	if err != nil {
		return nil, err
	}
	s, err := attach(ctx, p, parseArgs(args[1:]))
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", target, err)
	}
	return s, nil
}

// attach takes over p, also when it fails.
func attach(ctx context.Context, p *process, cfg *config) (*Source, error) {
	s := &Source{p: p, cfg: cfg, name: cfg.name}
	if s.name == "" {
		s.name = strconv.Itoa(p.pid)
	}
	s.qmp, s.qmpErr = dialMachine(ctx, p, cfg)
	if err := s.load(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// load finds and opens the machine's RAM, in place of what was open before.
func (s *Source) load(ctx context.Context) error {
	o, err := newOpener(s.p)
	if err != nil {
		return err
	}
	var blocks []block
	cpus := s.cfg.cpus
	if s.qmp != nil {
		blocks, err = askLayout(ctx, s.qmp)
		if err == nil {
			cpus, err = askCPUs(ctx, s.qmp)
		}
	} else {
		blocks, err = s.deriveLayout(o)
	}
	var regions []region
	for _, b := range blocks {
		if err != nil {
			break
		}
		var rs []region
		rs, err = o.regions(b)
		regions = append(regions, rs...)
	}
	var layout mem.Layout
	if err == nil {
		layout, err = layoutOf(regions)
	}
	if err != nil {
		o.close()
		return s.p.explain(err)
	}
	if s.open != nil {
		s.open.close()
	}
	s.open, s.regions = o, regions
	s.info = source.Info{
		Kind: "qemu", Name: s.name, Detail: s.detail(), Layout: layout,
		Live: true, Local: true, CPUs: cpus,
	}
	return nil
}

// detail tells people how memory, registers and pausing are reached.
func (s *Source) detail() string {
	switch {
	case s.qmp != nil:
		return s.ways() + ", QMP"
	case s.cfg.gdb != "":
		return s.ways() + ", GDB stub (no QMP: " + s.qmpErr.Error() + "; pausing stops the QEMU process)"
	}
	return s.ways() + ", no QMP (" + s.qmpErr.Error() + "): no registers, pausing stops the QEMU process"
}

// ways tells how the regions are read.
func (s *Source) ways() string {
	var ways []string
	for _, r := range s.regions {
		if w := way(r.ram); !slices.Contains(ways, w) {
			ways = append(ways, w)
		}
	}
	return strings.Join(ways, " and ")
}

func way(r ram) string {
	switch r := r.(type) {
	case fileRAM:
		return r.what
	case cowRAM:
		return "private memory-backend-file"
	}
	return "process memory"
}

// Info describes the machine.
func (s *Source) Info() source.Info { return s.info }

// PID is the QEMU process.
func (s *Source) PID() int { return s.p.pid }

// Close lets the machine run again if this source paused it, and lets go of it.
func (s *Source) Close() error {
	var errs []error
	if s.resume != nil {
		errs = append(errs, s.resume())
	}
	if s.guard != nil {
		errs = append(errs, s.guard.close())
		s.guard = nil
	}
	if s.qmp != nil {
		errs = append(errs, s.qmp.Close())
		s.qmp = nil
	}
	if s.open != nil {
		s.open.close()
		s.open = nil
	}
	if s.p != nil {
		s.p.close()
		s.p = nil
	}
	s.regions = nil
	return errors.Join(errs...)
}

// Refresh looks at the machine again: it finds memory plugged in since, and
// returns mem.ErrGone when the QEMU process has exited.
func (s *Source) Refresh(ctx context.Context) error {
	if s.p == nil {
		return errClosed
	}
	if !s.p.alive() {
		return s.p.gone()
	}
	if s.qmp != nil {
		if _, err := s.status(ctx); errors.Is(err, qmp.ErrBroken) && s.resume == nil {
			s.redial(ctx)
		}
	}
	return s.load(ctx)
}

// redial replaces a QMP connection that broke. The watchdog shares the old one and
// would keep QEMU from serving another.
func (s *Source) redial(ctx context.Context) {
	if s.guard != nil {
		s.guard.close()
		s.guard = nil
	}
	s.qmp.Close()
	s.qmp, s.qmpErr = dialMachine(ctx, s.p, s.cfg)
}
