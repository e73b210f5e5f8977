package linux

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// TestMaps compares every process's areas, rendered, with the guest's own
// /proc/PID/maps, byte by byte.
func TestMaps(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		tree := ask(t, g, "all", "maps,cmdline")
		special := []string{"[heap]", "[stack]", "[vdso]"}
		if definite(t) {
			special = append(special, "/tmp/mapped file", "/tmp/mapped and gone (deleted)", "/memfd:umbra memory (deleted)")
		}
		for _, batch := range []bool{false, true} {
			v := view(t, k, mem.Options{Batch: batch})
			maps, err := Maps(v, MapOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Findings() {
				t.Errorf("finding: %v", f)
			}
			compareMaps(t, maps, tree)
			for _, want := range special {
				checkMapped(t, maps, want)
			}
			if rounds := v.Snapshot().Stats().Rounds; batch && rounds > 18 {
				t.Errorf("%d mappings in %d rounds, more than 18", len(maps), rounds)
			}
		}
	})
}

// compareMaps compares what was read with all the maps the guest told of.
func compareMaps(t *testing.T, maps []Mapping, tree *lab.ProcTree) {
	t.Helper()
	got := map[int]*bytes.Buffer{}
	for i := range maps {
		m := &maps[i]
		line, err := m.Line()
		if err != nil || m.Moved {
			t.Errorf("pid %d: moved %v, %v", m.PID, m.Moved, err)
		}
		if got[m.PID] == nil {
			got[m.PID] = &bytes.Buffer{}
		}
		fmt.Fprintln(got[m.PID], line)
	}
	compared := 0
	for _, pid := range tree.PIDs() {
		want, ok := tree.Files[fmt.Sprintf("%d/maps", pid)]
		if !ok || bytes.Contains(tree.Files[fmt.Sprintf("%d/cmdline", pid)], []byte("oracle")) {
			continue // it may have asked for memory since
		}
		var text []byte
		if b := got[pid]; b != nil {
			text = b.Bytes()
		}
		if diff := firstDifference(text, want); diff != "" {
			t.Errorf("pid %d: %s", pid, diff)
		}
		if len(want) > 0 {
			compared++
		}
	}
	if compared < least(t, 50) {
		t.Errorf("compared %d processes only", compared)
	}
}

// firstDifference returns the first lines that two texts do not share, "" when
// they are equal.
func firstDifference(got, want []byte) string {
	a, b := strings.SplitAfter(string(got), "\n"), strings.SplitAfter(string(want), "\n")
	for i := range max(len(a), len(b)) {
		x, y := "", ""
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return fmt.Sprintf("line %d of %d is\n%q, the guest says (of %d)\n%q", i+1, len(a), x, len(b), y)
		}
	}
	return ""
}

func checkMapped(t *testing.T, maps []Mapping, path string) {
	t.Helper()
	for _, m := range maps {
		if m.Path != nil && *m.Path == path {
			return
		}
	}
	t.Errorf("nothing maps %s", path)
}

// TestMapsLine renders what no guest of the lab has.
func TestMapsLine(t *testing.T) {
	perms, device, path, n := "r-xp", "fd:01", "/a\nb \\c", uint64(0x1000)
	m := Mapping{First: 0x400000, Limit: 0x401000, Perms: &perms, Device: &device, Offset: &n, Inode: &n, Path: &path}
	line, err := m.Line()
	if want := `00400000-00401000 r-xp 00001000 fd:01 4096 ` + strings.Repeat(" ", 30) + `/a\012b \c`; line != want || err != nil {
		t.Errorf("%q, %v, want %q", line, err, want)
	}
	m.Errors = []string{"path: gone"}
	if line, err := m.Line(); err == nil {
		t.Errorf("a mapping with errors renders as %q", line)
	}
}

// TestMapsVsyscall compares areas on machines whose processes have the vsyscall page.
func TestMapsVsyscall(t *testing.T) {
	for version, mode := range map[string]string{"5.10": "emulate", "7.2": "xonly"} {
		t.Run(version+" "+mode, func(t *testing.T) {
			g := lab.Shared(t, lab.Config{Kernel: version, MemMB: 256, Append: []string{"umbra.state=0", "vsyscall=" + mode}})
			k := attach(t, g)
			tree := ask(t, g, "1", "maps")
			maps, err := Maps(view(t, k, mem.Options{}), MapOptions{PID: 1})
			if err != nil {
				t.Fatal(err)
			}
			checkMapped(t, maps, "[vsyscall]")
			var text []byte
			for i := range maps {
				line, err := maps[i].Line()
				if err != nil {
					t.Error(err)
				}
				text = append(text, line+"\n"...)
			}
			if diff := firstDifference(text, tree.Files["1/maps"]); diff != "" {
				t.Error(diff)
			}
		})
	}
}
