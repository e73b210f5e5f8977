package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// The example is built and run as it stands, on a real machine.
func TestIDS(t *testing.T) {
	ids := filepath.Join(t.TempDir(), "ids")
	if out, err := exec.Command("go", "build", "-o", ids, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	g := lab.Shared(t, lab.Config{Kernel: "6.1", MemMB: 384})
	out, err := exec.Command(ids, g.Name()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"Linux version " + g.Kernel().Release, `      1     0 "init"`, `"kthreadd"`} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if out, err := exec.Command(ids, "no-such-machine").CombinedOutput(); err == nil {
		t.Errorf("a machine that does not exist was watched:\n%s", out)
	}
}
