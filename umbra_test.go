package umbra_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/umbravm/umbra"
	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/mem"
)

func TestMain(m *testing.M) { lab.Main(m) }

// TestRefresh attaches, resets the machine under the attachment and finds the new
// kernel again; then the machine ends.
func TestRefresh(t *testing.T) {
	ctx := context.Background()
	g, err := lab.Boot(ctx, lab.Config{MemMB: 256, QMP: true, Append: []string{"umbra.state=0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	m, err := umbra.Attach(ctx, g.Name(), umbra.Options{NoCache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if rebooted, err := m.Refresh(ctx); rebooted || err != nil {
		t.Errorf("a machine that runs on: rebooted %v, %v", rebooted, err)
	}
	first := m.Kernel
	if err := g.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if rebooted, err := m.Refresh(ctx); !rebooted || err != nil {
		t.Fatalf("after a reset: rebooted %v, %v", rebooted, err)
	}
	if m.Kernel == first {
		t.Error("the kernel from before the reset is still in place")
	}
	tasks, err := linux.Tasks(m.View(ctx), linux.TaskOptions{})
	if err != nil || len(tasks) < 20 {
		t.Errorf("%d tasks, %v", len(tasks), err)
	}
	if release := release(t, g); !strings.HasPrefix(m.Kernel.Banner(), "Linux version "+release+" ") {
		t.Errorf("banner %q, the guest runs %s", m.Kernel.Banner(), release)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if rebooted, err := m.Refresh(ctx); rebooted || !errors.Is(err, mem.ErrGone) {
		t.Errorf("a machine that ended: rebooted %v, %v", rebooted, err)
	}
}

func release(t *testing.T, g *lab.Guest) string {
	t.Helper()
	b, err := g.Ask(context.Background(), "cat /proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
