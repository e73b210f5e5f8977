package linux

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source/qemu"
)

func TestMain(m *testing.M) { lab.Main(m) }

// testKernels are the generations every test runs on.
var testKernels = []string{"5.10", "6.1", "6.12", "7.2"}

// onEachKernel runs a test on one guest of each generation, or on the machines that
// UMBRA_TEST_GUESTS describes (lab.ParseConfig, separated by spaces). The guests are
// shared by the tests of this package and stay paused only while within is running.
func onEachKernel(t *testing.T, test func(t *testing.T, g *lab.Guest)) {
	machines := strings.Fields(os.Getenv("UMBRA_TEST_GUESTS"))
	if len(machines) == 0 {
		for _, version := range testKernels {
			machines = append(machines, version+"/mem=384")
		}
	}
	for _, text := range machines {
		c, err := lab.ParseConfig(text)
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(text, "/mem=384")
		t.Run(name, func(t *testing.T) { test(t, lab.Shared(t, c)) })
	}
}

// definite tells whether the test's guest runs the lab's own program, which brings
// it into every state there is, and not a Debian system.
func definite(t testing.TB) bool { return !strings.Contains(t.Name(), "root=debian") }

// least returns n, what a guest must at least have of something for a comparison to
// tell anything; of a Debian system little is known.
func least(t testing.TB, n int) int {
	if !definite(t) {
		return 1
	}
	return n
}

// attach attaches to a guest from outside.
func attach(t testing.TB, g *lab.Guest) *kernel.Kernel {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	src, err := qemu.Open(ctx, g.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	k, err := kernel.Attach(ctx, src, kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// ask has the guest write its own /proc and then stands it still until the test
// ends, so that what is read from outside is what the guest has just said.
func ask(t testing.TB, g *lab.Guest, filter ...string) *lab.ProcTree {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	tree, err := g.Proc(ctx, filter...)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := g.Resume(ctx); err != nil {
			t.Error(err)
		}
	})
	return tree
}

// view returns a view of the kernel that ends with the test.
func view(t testing.TB, k *kernel.Kernel, opts mem.Options) *kernel.View {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return k.View(ctx, opts)
}
