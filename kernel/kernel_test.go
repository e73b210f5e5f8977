package kernel_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/qemu"
)

func TestMain(m *testing.M) { lab.Main(m) }

var testKernels = []string{"5.10", "6.1", "6.12", "7.2"}

// blind is a source without registers, like a machine whose monitor others hold.
type blind struct {
	source.Source
	source.HoleFinder
}

// noted is a blind source that does not show the pages in which the kernel left
// notes for kdump either.
type noted struct{ blind }

func (n noted) ReadPhys(ctx context.Context, reads []mem.Read) error {
	if err := n.blind.ReadPhys(ctx, reads); err != nil {
		return err
	}
	for _, r := range reads {
		for at := 0; at+24 <= r.N; at += mem.PageSize {
			if string(r.Buf[at+12:at+22]) == "VMCOREINFO" {
				clear(r.Buf[at+12 : at+22])
			}
		}
	}
	return nil
}

func open(t *testing.T, g *lab.Guest) *qemu.Source {
	t.Helper()
	src, err := qemu.Open(context.Background(), g.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// release returns what the guest itself says it runs.
func release(t *testing.T, g *lab.Guest) string {
	t.Helper()
	b, err := g.Ask(context.Background(), "cat /proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// TestAttach finds every kernel in each of the three ways, and the same one.
func TestAttach(t *testing.T) {
	for _, version := range testKernels {
		t.Run(version, func(t *testing.T) {
			g := lab.Shared(t, lab.Config{Kernel: version, MemMB: 256, QMP: true, Append: []string{"umbra.state=0"}})
			src := open(t, g)
			ways := map[string]source.Source{
				kernel.ByRegisters:  src,
				kernel.ByVMCoreInfo: blind{src, src},
				kernel.ByScan:       noted{blind{src, src}},
			}
			want := release(t, g)
			var slide uint64
			for method, s := range ways {
				k, err := kernel.Attach(context.Background(), s, kernel.Options{})
				if err != nil {
					t.Errorf("by %s: %v", method, err)
					continue
				}
				if k.Attached().Method != method {
					t.Errorf("found by %s, not by %s", k.Attached().Method, method)
				}
				if !strings.HasPrefix(k.Banner(), "Linux version "+want+" ") {
					t.Errorf("by %s: banner %q, the guest runs %s", method, k.Banner(), want)
				}
				if slide != 0 && k.Slide() != slide {
					t.Errorf("by %s: slide %#x, before %#x", method, k.Slide(), slide)
				}
				slide = k.Slide()
				if err := k.Check(context.Background()); err != nil {
					t.Errorf("by %s: check: %v", method, err)
				}
				if found, err := k.Tampered(); err != nil || len(found) > 0 {
					t.Errorf("by %s: tampered: %v, %v", method, found, err)
				}
			}
		})
	}
}

// TestSecondBoot boots twice on one RAM file: the remains of the first kernel must
// not win, whichever way the running one is looked for.
func TestSecondBoot(t *testing.T) {
	ram := filepath.Join(ramDir(t), "ram")
	cfg := lab.Config{Kernel: "6.1", MemMB: 256, QMP: true, MemPath: ram, KeepRAM: true, Append: []string{"umbra.state=0"}}
	first := boot(t, cfg)
	k1, err := kernel.Attach(context.Background(), open(t, first), kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	old := k1.Slide()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// Another kernel, so that its banner tells it from the remains.
	cfg.Kernel = "6.12"
	g := boot(t, cfg)
	want := release(t, g)
	src := open(t, g)
	for _, s := range []source.Source{src, blind{src, src}, noted{blind{src, src}}} {
		k, err := kernel.Attach(context.Background(), s, kernel.Options{})
		if err != nil {
			t.Errorf("attach: %v", err)
			continue
		}
		if !strings.HasPrefix(k.Banner(), "Linux version "+want+" ") {
			t.Errorf("by %s: %q, but the guest runs %s (the first boot's slide was %#x)", k.Attached().Method, k.Banner(), want, old)
		}
		tasks, err := linux.Tasks(k.View(context.Background(), mem.Options{}), linux.TaskOptions{})
		if err != nil || len(tasks) < 20 {
			t.Errorf("by %s: %d tasks, %v", k.Attached().Method, len(tasks), err)
		}
	}
}

// TestReboot resets the machine while it is attached to.
func TestReboot(t *testing.T) {
	g := boot(t, lab.Config{Kernel: "6.1", MemMB: 256, QMP: true, Append: []string{"umbra.state=0"}})
	src := open(t, g)
	ctx := context.Background()
	k, err := kernel.Attach(ctx, src, kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := kernel.Attach(ctx, blind{src, src}, kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if err := k.Check(ctx); !errors.Is(err, kernel.ErrRebooted) {
		t.Errorf("check after a reset: %v", err)
	}
	if _, err := kernel.Attach(ctx, src, kernel.Options{}); err != nil {
		t.Errorf("attach after a reset: %v", err)
	}
	// Without registers the old boot's memory may lie there untouched, but it
	// must not be taken for the running kernel on a new attach.
	again, err := kernel.Attach(ctx, blind{src, src}, kernel.Options{})
	if err != nil {
		t.Fatalf("attach without registers after a reset: %v", err)
	}
	if again.Slide() == b.Slide() {
		t.Logf("both boots have the slide %#x", b.Slide())
	}
	var clock linux.Clock
	err = again.View(ctx, mem.Options{}).Do(func(w *kernel.Walk) {
		var err error
		if clock, err = linux.ReadClock(w); err != nil {
			w.Fail(err)
		}
	})
	if err != nil || clock.Uptime > time.Minute {
		t.Errorf("uptime %v, %v: this is the kernel from before the reset", clock.Uptime, err)
	}
}

func boot(t *testing.T, c lab.Config) *lab.Guest {
	t.Helper()
	g, err := lab.Boot(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// ramDir is a directory for guest memory that ends with the test.
func ramDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "umbra-kernel-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
