package qemu

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/internal/qmp"
)

// Machine is a QEMU process on this host and how it can be watched.
type Machine struct {
	Name        string `json:"name"` // "" when it was started without one
	PID         int    `json:"pid"`
	UUID        string `json:"uuid,omitempty"`
	MemoryBytes uint64 `json:"memory_bytes"` // at boot
	CPUs        int    `json:"cpus"`         // 0 when the command line does not tell
	Type        string `json:"machine,omitempty"`
	Accel       string `json:"accel"`  // "kvm", "tcg", …
	Memory      string `json:"memory"` // how RAM can be reached, "" when it cannot
	QMP         string `json:"qmp"`    // "available", "busy", "none", "no permission", "no answer"
	Problem     string `json:"problem,omitempty"`
}

// List returns the QEMU machines of this host in the order of their PIDs. What
// stands in the way of watching one is told in its Problem.
func List(ctx context.Context) ([]Machine, error) {
	all, err := candidates(ctx)
	if err != nil {
		return nil, err
	}
	ms := make([]Machine, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			defer c.p.close()
			ms[i] = c.describe(ctx)
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(ms, func(a, b Machine) int { return a.PID - b.PID })
	return ms, nil
}

// describe looks at a machine without disturbing it: QMP serves one client at a
// time, so a session is opened only where nothing else tells how RAM is reached.
func (c *candidate) describe(ctx context.Context) Machine {
	m := Machine{
		Name: c.cfg.name, PID: c.p.pid, UUID: c.cfg.uuid, MemoryBytes: c.cfg.memory,
		CPUs: c.cfg.cpus, Type: c.cfg.machine, Accel: c.p.accel(c.cfg),
	}
	qerr := c.p.qmpStatus(c.cfg)
	m.QMP = qmpState(qerr)
	s := &Source{p: c.p, cfg: c.cfg, qmpErr: qerr}
	err := s.locate()
	if err != nil && qerr == nil && !errors.Is(err, ErrPermission) {
		if s.qmp, s.qmpErr = dialMachine(ctx, c.p, c.cfg); s.qmp != nil {
			defer s.qmp.Close()
		}
		err = s.load(ctx)
	}
	if err != nil {
		m.Problem = err.Error()
		var te *TargetError
		if errors.As(err, &te) && te.Hint != "" {
			m.Problem += "; " + te.Hint
		}
		return m
	}
	m.Memory = s.ways()
	s.open.close()
	return m
}

// locate opens the machine's RAM for looking at how it is reached. With QMP at hand
// the layout need not be proved here; without, it must be, as Open will.
func (s *Source) locate() error {
	o, err := newOpener(s.p)
	if err != nil {
		return err
	}
	s.open = o
	var blocks []block
	if s.qmpErr != nil {
		blocks, err = s.deriveLayout(o)
	} else {
		var runs []hostRun
		runs, err = s.cfg.hostRAM(o)
		blocks = place(runs, s.cfg.memory)
	}
	for _, b := range blocks {
		if err != nil {
			break
		}
		var rs []region
		rs, err = o.regions(b)
		s.regions = append(s.regions, rs...)
	}
	if err != nil {
		o.close()
		s.open, s.regions = nil, nil
	}
	return err
}

// qmpStatus tells, without connecting, whether dialMachine could succeed.
func (p *process) qmpStatus(cfg *config) error {
	err := errNoQMP
	if stopped, serr := p.stopped(); serr == nil && stopped {
		return errStopped
	}
	for _, path := range p.qmpPaths(cfg) {
		switch aerr := unix.Access(path, unix.R_OK|unix.W_OK); {
		case aerr != nil:
			err = aerr
		case qmp.Held(path):
			err = qmp.ErrBusy
		default:
			return nil
		}
	}
	return err
}

func qmpState(err error) string {
	switch {
	case err == nil:
		return "available"
	case errors.Is(err, qmp.ErrBusy):
		return "busy"
	case errors.Is(err, errNoQMP):
		return "none"
	case errors.Is(err, os.ErrPermission):
		return "no permission"
	}
	return "no answer"
}

// accel is what runs the machine's CPUs: what the command line says where that is
// one thing, else what the process shows.
func (p *process) accel(cfg *config) string {
	names := cfg.accels
	if len(names) == 0 && cfg.machineOpts["accel"] != "" {
		names = []string{cfg.machineOpts["accel"]}
	}
	if len(names) == 1 && names[0] != "" && !slices.Contains([]byte(names[0]), ':') {
		return names[0]
	}
	// A list of choices, or none: KVM is in use when a virtual CPU is open.
	fds, err := os.ReadDir(p.path("fd"))
	if err != nil {
		return "unknown"
	}
	for _, e := range fds {
		if link, err := os.Readlink(p.path("fd", e.Name())); err == nil && link == "anon_inode:kvm-vcpu:0" {
			return "kvm"
		}
	}
	return "tcg"
}
