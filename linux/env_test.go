package linux

import (
	"errors"
	"fmt"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// TestEnv compares every process's environment with the guest's /proc/PID/environ.
func TestEnv(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		tree := ask(t, g, "all", "environ")
		for _, batch := range []bool{false, true} {
			v := view(t, k, mem.Options{Batch: batch})
			rows, err := Env(v, 0)
			if err != nil {
				t.Fatal(err)
			}
			seen, full := map[int]bool{}, 0
			for _, r := range rows {
				want, ok := tree.Files[fmt.Sprintf("%d/environ", r.PID)]
				if !ok {
					continue // a kernel thread came after the guest was asked
				}
				if seen[r.PID] = true; string(r.Raw) != string(want) || len(r.Errors) > 0 || r.Moved {
					t.Errorf("pid %d: errors %v, moved %v\n got %q\nwant %q", r.PID, r.Errors, r.Moved, r.Raw, want)
				}
				if len(want) > 0 {
					full++
				}
			}
			for _, pid := range tree.PIDs() {
				if !seen[pid] {
					t.Errorf("pid %d: not listed", pid)
				}
			}
			if full < least(t, 20) {
				t.Errorf("only %d processes with an environment", full)
			}
			if rounds := v.Snapshot().Stats().Rounds; batch && rounds > 20 {
				t.Errorf("%d environments in %d rounds", len(rows), rounds)
			}
		}
		one, err := Env(view(t, k, mem.Options{}), 1)
		if err != nil || len(one) != 1 || one[0].PID != 1 || len(one[0].Env) == 0 {
			t.Errorf("pid 1 alone: %+v, %v", one, err)
		}
		if _, err := Env(view(t, k, mem.Options{}), 4194303); !errors.Is(err, ErrNoProcess) {
			t.Errorf("no process: %v", err)
		}
	})
}
