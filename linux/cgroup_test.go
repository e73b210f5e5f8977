package linux

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// TestCgroups compares the groups with the guest's /sys/fs/cgroup and their
// processes with its /proc/PID/cgroup.
func TestCgroups(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		want := cgroupTree(t, g, "/sys/fs/cgroup")
		if len(want) < 6 {
			t.Fatalf("the guest has %d groups", len(want))
		}
		tree := ask(t, g, "all", "cgroup,status")
		for _, batch := range []bool{false, true} {
			v := view(t, k, mem.Options{Batch: batch})
			rows, err := Cgroups(v)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Findings() {
				t.Errorf("finding: %v", f)
			}
			compareCgroups(t, rows, want)
			compareMembers(t, rows, tree)
			if rounds := v.Snapshot().Stats().Rounds; batch && definite(t) && rounds > 30 { // one for each of a group's children at worst
				t.Errorf("%d groups in %d rounds", len(rows), rounds)
			}
		}
	})
}

// cgroupFiles is what a group's own files say.
type cgroupFiles struct {
	controllers, procs []string
	populated, frozen  string // "" where there is no such file
}

// cgroupTree reads the groups below a directory in the guest. The files of a group
// have a dot in their names, its groups have none but those of systemd's units.
func cgroupTree(t *testing.T, g *lab.Guest, top string) map[string]cgroupFiles {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out := map[string]cgroupFiles{}
	var visit func(path string)
	visit = func(path string) {
		names, err := g.Ask(ctx, "ls "+top+path)
		if err != nil {
			t.Fatal(err)
		}
		read := func(name string) []string {
			if !slices.Contains(strings.Split(string(names), "\n"), name) {
				return nil
			}
			b, err := g.Ask(ctx, "cat "+top+path+"/"+name)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Fields(string(b))
		}
		f := cgroupFiles{controllers: read("cgroup.controllers"), procs: read("cgroup.procs")}
		if e := read("cgroup.events"); len(e) == 4 {
			f.populated, f.frozen = e[1], e[3]
		}
		out[path] = f
		for name := range strings.SplitSeq(strings.TrimSpace(string(names)), "\n") {
			unit := regexp.MustCompile(`\.(slice|scope|service|mount|socket|swap)$`).MatchString(name) // systemd's
			if name != "" && (unit || !strings.Contains(name, ".")) && name != "tasks" && name != "notify_on_release" && name != "release_agent" {
				visit(path + "/" + name)
			}
		}
	}
	visit("")
	return out
}

func compareCgroups(t *testing.T, rows []Cgroup, want map[string]cgroupFiles) {
	t.Helper()
	seen, ids := map[string]bool{}, map[uint64]bool{}
	for i := range rows {
		c := &rows[i]
		if len(c.Errors) > 0 || c.Moved || c.Hierarchy != 0 || c.Name != nil {
			t.Errorf("%s: %+v", c.Path, c)
		}
		if c.ID == 0 || ids[c.ID] {
			t.Errorf("%s: id %d", c.Path, c.ID)
		}
		ids[c.ID] = true
		f, ok := want[strings.TrimSuffix(c.Path, "/")]
		if !ok {
			t.Errorf("%s: the guest has no such group", c.Path)
			continue
		}
		seen[strings.TrimSuffix(c.Path, "/")] = true
		if !slices.Equal(c.Controllers, f.controllers) && len(c.Controllers)+len(f.controllers) > 0 {
			t.Errorf("%s: controllers %v, the guest says %v", c.Path, c.Controllers, f.controllers)
		}
		if c.Path != "/" && c.Processes != len(f.procs) { // kernel threads come and go in the root
			t.Errorf("%s: %d processes, the guest says %v", c.Path, c.Processes, f.procs)
		}
		if f.populated != "" && (flag(c.Populated) != f.populated || flag(c.Frozen) != f.frozen) {
			t.Errorf("%s: populated %s, frozen %s; the guest says %s, %s", c.Path, flag(c.Populated), flag(c.Frozen), f.populated, f.frozen)
		}
	}
	for path := range want {
		if !seen[path] {
			t.Errorf("%s: not listed", path)
		}
	}
}

func flag(b *bool) string {
	switch {
	case b == nil:
		return "nil"
	case *b:
		return "1"
	}
	return "0"
}

// compareMembers holds the processes of all groups against /proc/PID/cgroup.
func compareMembers(t *testing.T, rows []Cgroup, tree *lab.ProcTree) {
	t.Helper()
	of := map[int][]string{}
	for _, c := range rows {
		for _, pid := range c.PIDs {
			line := fmt.Sprintf("%d::%s", c.Hierarchy, c.Path)
			if c.Name != nil {
				line = fmt.Sprintf("%d:name=%s:%s", c.Hierarchy, *c.Name, c.Path)
			}
			of[pid] = append(of[pid], line)
		}
	}
	n := 0
	for _, pid := range tree.PIDs() {
		want, ok := tree.Files[fmt.Sprintf("%d/cgroup", pid)]
		status := string(tree.Files[fmt.Sprintf("%d/status", pid)])
		if !ok || strings.Contains(status, "State:\tZ") && !strings.Contains(status, "Threads:\t2") {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(want)), "\n")
		slices.Sort(lines)
		slices.Sort(of[pid])
		if n++; !slices.Equal(of[pid], lines) {
			t.Errorf("pid %d: in %q, the guest says %q", pid, of[pid], lines)
		}
	}
	if n < least(t, 10) {
		t.Errorf("%d processes compared", n)
	}
}

// TestCgroupsV1 has a named v1 hierarchy beside v2.
func TestCgroupsV1(t *testing.T) {
	for _, version := range []string{"5.10", "7.2"} {
		t.Run(version, func(t *testing.T) {
			g := bareGuest(t, version)
			have(t, g, "cgroup1")
			k := attach(t, g)
			want := cgroupTree(t, g, "/run/cgroup1")
			tree := ask(t, g, "all", "cgroup,status")
			rows, err := Cgroups(view(t, k, mem.Options{Batch: true}))
			if err != nil {
				t.Fatal(err)
			}
			compareMembers(t, rows, tree)
			found := 0
			for _, c := range rows {
				if c.Name == nil {
					continue
				}
				f, ok := want[strings.TrimSuffix(c.Path, "/")]
				if found++; !ok || *c.Name != "umbra" || c.Populated != nil || c.Frozen != nil || len(c.Controllers) > 0 ||
					c.Path != "/" && c.Processes != len(f.procs) {
					t.Errorf("%+v; the guest says %+v", c, f)
				}
			}
			if found != len(want) || found != 3 {
				t.Errorf("%d groups in the hierarchy, the guest has %d", found, len(want))
			}
		})
	}
}
