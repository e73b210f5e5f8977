package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/umbravm/umbra/internal/qmp"
)

var (
	// errNoQMP: the machine was started without a QMP socket this package can use.
	errNoQMP = errors.New("the machine has no QMP socket")

	errStopped = errors.New("the QEMU process is stopped by a signal")
)

// dialMachine opens the first of the machine's QMP sockets that answers.
func dialMachine(ctx context.Context, p *process, cfg *config) (*qmp.Client, error) {
	err := errNoQMP
	if stopped, serr := p.stopped(); serr == nil && stopped {
		return nil, errStopped
	}
	for _, path := range p.qmpPaths(cfg) {
		var c *qmp.Client
		if c, err = qmp.Dial(ctx, path); err != nil {
			continue
		}
		peer, perr := c.Peer()
		if perr == nil && peer == p.pid || p.listensAt(path) {
			return c, nil
		}
		// Another machine was started with the same path.
		c.Close()
		err = fmt.Errorf("QMP socket %s belongs to process %d", path, peer)
	}
	return nil, err
}

// status is QEMU's run state: whether the machine runs and, when it does not, why.
type status struct {
	Running bool   `json:"running"`
	Status  string `json:"status"`
}

func (s *Source) status(ctx context.Context) (status, error) {
	var st status
	err := s.qmp.Execute(ctx, "query-status", nil, &st)
	return st, err
}

// askCPUs asks how many virtual CPUs the machine has now.
func askCPUs(ctx context.Context, c *qmp.Client) (int, error) {
	var cpus []struct{}
	err := c.Execute(ctx, "query-cpus-fast", nil, &cpus)
	return len(cpus), err
}
