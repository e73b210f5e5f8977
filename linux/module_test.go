package linux

import (
	"fmt"
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// TestModules compares the modules with the guest's /proc/modules, in its order.
func TestModules(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		tree := ask(t, g, "1")
		if why, ok := tree.Errors["modules"]; ok {
			t.Fatalf("the guest does not tell its modules: %s", why)
		}
		want := strings.FieldsFunc(string(tree.Files["modules"]), func(r rune) bool { return r == '\n' })
		if len(want) < 5 && definite(t) {
			t.Fatalf("the guest has %d modules, too few to tell anything", len(want))
		}
		for _, batch := range []bool{false, true} {
			v := view(t, k, mem.Options{Batch: batch})
			modules, err := Modules(v)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Findings() {
				t.Errorf("finding: %v", f)
			}
			if len(modules) != len(want) {
				t.Fatalf("%d modules, the guest has %d", len(modules), len(want))
			}
			for i := range modules {
				if got := moduleLine(t, &modules[i]); got != want[i] {
					t.Errorf("module %d:\n got %q\nwant %q", i, got, want[i])
				}
			}
			if rounds := v.Snapshot().Stats().Rounds; batch && rounds > 20 {
				t.Errorf("%d modules in %d rounds", len(modules), rounds)
			}
		}
	})
}

// moduleLine writes a module as /proc/modules does.
func moduleLine(t *testing.T, m *Module) string {
	t.Helper()
	if len(m.Errors) > 0 || m.Moved || m.Refcount == nil {
		t.Errorf("module %s: errors %v, moved %v, refcount %v", m.Name, m.Errors, m.Moved, m.Refcount)
		return ""
	}
	users := "-"
	if len(m.UsedBy) > 0 {
		users = strings.Join(m.UsedBy, ",") + ","
	}
	line := fmt.Sprintf("%s %d %d %s %s %s", m.Name, m.Size, *m.Refcount, users, m.State, m.Address)
	if m.Taints != "" {
		line += " " + m.Taints
	}
	return line
}

// TestModuleCheck holds every way a module can be missing somewhere against what
// is said of it.
func TestModuleCheck(t *testing.T) {
	const a mem.Virt = 0xffffffffc0000000
	set := func(state uint64, list, tree, sys bool) *moduleSet {
		row := moduleRow{state: state}
		row.Name, row.Addr = "m", a
		return &moduleSet{
			rows:   []moduleRow{row},
			inList: map[mem.Virt]bool{a: list}, inTree: map[mem.Virt]bool{a: tree}, inSys: map[mem.Virt]bool{a: sys},
		}
	}
	for _, c := range []struct {
		set  *moduleSet
		want string // part of the only finding, "" for none
	}{
		{set(moduleLive, true, true, true), ""},
		{set(moduleLive, false, true, true), "not in the list"},
		{set(moduleLive, true, false, true), "not in the tree"},
		{set(moduleLive, true, true, false), "not in /sys/module"},
		{set(moduleGoing, true, true, false), ""},
		{set(moduleComing, true, true, false), ""},
		{set(moduleUnformed, true, true, false), ""},
		{set(moduleUnformed, true, true, true), "marked as not yet loaded"},
	} {
		odd := c.set.oddities()
		switch {
		case c.want == "" && len(odd) > 0:
			t.Errorf("%+v: %v", c.set.rows[0].state, odd)
		case c.want != "" && (len(odd) != 1 || !strings.Contains(odd[0].what, c.want)):
			t.Errorf("%+v: %v, want one that says %q", c.set.rows[0].state, odd, c.want)
		}
	}
}

func TestModuleTaints(t *testing.T) {
	for _, c := range []struct {
		taints, state uint64
		want          string
	}{
		{0, moduleLive, ""},
		{0, moduleGoing, ""},
		{1<<12 | 1<<13, moduleLive, "(OE)"},
		{1 << 0, moduleGoing, "(P-)"},
		{1<<10 | 1<<15 | 1<<18, moduleComing, "(CKN+)"},
		{1 << 9, moduleLive, "()"}, // a warning is the kernel's, not a module's
	} {
		if got := moduleTaints(c.taints, c.state); got != c.want {
			t.Errorf("taints %#x in state %d: %q, want %q", c.taints, c.state, got, c.want)
		}
	}
}
