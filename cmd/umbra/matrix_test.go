//go:build matrix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
)

// matrix is machines beyond those that every test run boots: what differs is how a
// kernel was built, how it maps memory and how QEMU holds it.
func matrix() map[string]lab.Config {
	all := make(map[string]lab.Config)
	for _, kernel := range lab.Kernels() {
		all[kernel+"-amd64"] = lab.Config{Kernel: kernel, Flavour: "amd64"}
		all[kernel+"-rt"] = lab.Config{Kernel: kernel, Flavour: "rt-amd64"}
		all[kernel+"-smp4"] = lab.Config{Kernel: kernel, CPUs: 4}
		all[kernel+"-4level"] = lab.Config{Kernel: kernel, CPUModel: "max,la57=off"}
		all[kernel+"-pti"] = lab.Config{Kernel: kernel, Append: []string{"pti=on"}}
		all[kernel+"-nokaslr"] = lab.Config{Kernel: kernel, Append: []string{"nokaslr"}}
		all[kernel+"-above-hole"] = lab.Config{Kernel: kernel, MemMB: 5 << 10}
		all[kernel+"-pc"] = lab.Config{Kernel: kernel, Machine: "pc", MemMB: 4 << 10}
		all[kernel+"-stock"] = lab.Config{Kernel: kernel, RAM: lab.RAMStock}
		all[kernel+"-memfd"] = lab.Config{Kernel: kernel, RAM: lab.RAMMemfd}
		all[kernel+"-numa"] = lab.Config{Kernel: kernel, CPUs: 2, NUMA: 2, MemMB: 512}
	}
	for name, c := range all {
		c.QMP = true
		if c.MemMB == 0 {
			c.MemMB = 512
		}
		all[name] = c
		if strings.HasSuffix(name, "-stock") || strings.HasSuffix(name, "-above-hole") {
			c.QMP = false
			all[name+"-noqmp"] = c
		}
	}
	return all
}

// TestMatrix compares the process list of each machine with its own /proc.
func TestMatrix(t *testing.T) {
	all := matrix()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
			defer cancel()
			g := bootPatiently(t, ctx, all[name])
			defer g.Close()
			tree, err := g.Proc(ctx, "all", "status,comm")
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Pause(ctx); err != nil {
				t.Fatal(err)
			}
			compareProcesses(t, run0(t, "ps", g.Name(), "-o", "json", "--brief"), tree)
			run0(t, "sockets", g.Name())
			if release := run0(t, "info", g.Name(), "--columns", "release", "-o", "json"); !bytes.Contains(release, []byte(g.Kernel().Release)) {
				t.Errorf("info: %s, booted was %s", release, g.Kernel().Release)
			}
		})
	}
}

// bootPatiently boots a machine in up to three attempts: under TCG a guest with
// several CPUs now and then dies while its kernel patches its own code.
func bootPatiently(t *testing.T, ctx context.Context, c lab.Config) *lab.Guest {
	t.Helper()
	for attempt := 1; ; attempt++ {
		g, err := lab.Boot(ctx, c)
		if err == nil {
			return g
		}
		if attempt == 3 || c.CPUs < 2 || ctx.Err() != nil {
			t.Fatal(err)
		}
		t.Logf("attempt %d: %v", attempt, err)
	}
}

func compareProcesses(t *testing.T, ps []byte, tree *lab.ProcTree) {
	t.Helper()
	var rows []struct {
		PID, PPID int
		UID       int
		Comm      string
	}
	if err := json.Unmarshal(ps, &rows); err != nil {
		t.Fatal(err)
	}
	got := make(map[int]string)
	for _, r := range rows {
		got[r.PID] = fmt.Sprint(r.PPID, " ", r.UID)
	}
	pids := tree.PIDs()
	if len(pids) < 20 {
		t.Fatalf("the guest names only %d processes", len(pids))
	}
	for _, pid := range pids {
		uid, _, _ := strings.Cut(tree.Field(pid, "Uid"), "\t")
		if want := tree.Field(pid, "PPid") + " " + uid; got[pid] != want {
			t.Errorf("pid %d: %q, the guest says %q", pid, got[pid], want)
		}
		delete(got, pid)
	}
	for _, r := range rows {
		// A kernel worker may have been started between the guest's list and the pause.
		if _, left := got[r.PID]; left && !strings.HasPrefix(r.Comm, "kworker/") {
			t.Errorf("pid %d, %q, is listed, and the guest does not know it", r.PID, r.Comm)
		}
	}
}
