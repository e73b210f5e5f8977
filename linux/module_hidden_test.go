package linux

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// TestHiddenModule takes a module out of the kernel's list, as rootkits do with
// themselves, and marks it as not yet loaded, as others do: it is listed all the
// same where anything tells of it, and told of.
func TestHiddenModule(t *testing.T) {
	for _, version := range testKernels {
		t.Run(version, func(t *testing.T) { hideModule(t, bareGuest(t, version)) })
	}
}

func hideModule(t *testing.T, g *lab.Guest) {
	k := attach(t, g)
	ask(t, g, "1")
	v := view(t, k, mem.Options{})
	modules, err := Modules(v)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(modules, func(m Module) bool { return m.Name == "dummy" })
	if i < 1 || len(v.Findings()) > 0 {
		t.Fatalf("module dummy at %d, findings %v", i, v.Findings())
	}
	l, err := kernel.Layout[moduleLayout](k)
	if err != nil {
		t.Fatal(err)
	}
	victim, node := modules[i].Addr, modules[i].Addr+mem.Virt(l.List.Offset)
	next, prev := readWord(t, v, node), readWord(t, v, node+8)

	undo := writeWords(t, g, v, map[mem.Virt]uint64{mem.Virt(prev): next, mem.Virt(next) + 8: prev})
	expectHidden(t, k, victim, len(modules), "not in the list of modules")
	undo()
	state := readWord(t, v, victim+mem.Virt(l.State.Offset))
	undo = writeWords(t, g, v, map[mem.Virt]uint64{victim + mem.Virt(l.State.Offset): state&^0xffffffff | moduleUnformed})
	expectHidden(t, k, victim, len(modules)-1, "marked as not yet loaded")
	undo()
	expectHidden(t, k, victim, len(modules), "")
}

// expectHidden lists the modules and wants one finding, or none for "".
func expectHidden(t *testing.T, k *kernel.Kernel, victim mem.Virt, n int, finding string) {
	t.Helper()
	v := view(t, k, mem.Options{})
	modules, err := Modules(v)
	if err != nil {
		t.Fatal(err)
	}
	if len(modules) != n {
		t.Errorf("%d modules, want %d", len(modules), n)
	}
	found := v.Findings()
	switch {
	case finding == "" && len(found) > 0:
		t.Errorf("findings %v", found)
	case finding != "" && (len(found) != 1 || !strings.Contains(found[0].What, finding) ||
		!strings.Contains(found[0].Object, "dummy") || !strings.Contains(found[0].Object, victim.String())):
		t.Errorf("findings %v, want one that says %q of dummy at %v", found, finding, victim)
	}
}

func readWord(t *testing.T, v *kernel.View, a mem.Virt) (x uint64) {
	t.Helper()
	if err := v.Do(func(w *kernel.Walk) { x = w.Word(a) }); err != nil {
		t.Fatal(err)
	}
	return x
}

// writeWords writes to the RAM of a paused guest, through its file, and returns
// what undoes it. A guest this small has all of its RAM below the PCI hole, where
// addresses are offsets of the file.
func writeWords(t *testing.T, g *lab.Guest, v *kernel.View, words map[mem.Virt]uint64) (undo func()) {
	t.Helper()
	f, err := os.OpenFile(g.RAMPath(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	old := map[int64][]byte{}
	for a, x := range words {
		p, err := v.Space().Translate(a)
		if err != nil {
			t.Fatal(err)
		}
		was := make([]byte, 8)
		if _, err := f.ReadAt(was, int64(p)); err != nil {
			t.Fatal(err)
		}
		old[int64(p)] = was
		if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, x), int64(p)); err != nil {
			t.Fatal(err)
		}
	}
	undo = sync.OnceFunc(func() {
		for p, was := range old {
			if _, err := f.WriteAt(was, p); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(undo) // others use the guest too
	return undo
}
