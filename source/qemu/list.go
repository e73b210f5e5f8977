package qemu

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

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

func (c *candidate) describe(ctx context.Context) Machine {
	m := Machine{
		Name: c.cfg.name, PID: c.p.pid, UUID: c.cfg.uuid, MemoryBytes: c.cfg.memory,
		CPUs: c.cfg.cpus, Type: c.cfg.machine, Accel: c.p.accel(c.cfg),
	}
	client, qerr := dialMachine(ctx, c.p, c.cfg)
	m.QMP = qmpState(qerr)
	s := &Source{p: c.p, cfg: c.cfg, qmp: client, qmpErr: qerr}
	if err := s.load(ctx); err != nil {
		m.Problem = err.Error()
		var te *TargetError
		if errors.As(err, &te) && te.Hint != "" {
			m.Problem += "; " + te.Hint
		}
	} else {
		m.Memory = s.ways()
		s.open.close()
	}
	if client != nil {
		client.Close()
	}
	return m
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
