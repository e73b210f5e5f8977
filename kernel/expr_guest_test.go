package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// TestEval compares what expressions give with what the guest says of itself.
func TestEval(t *testing.T) {
	for _, version := range testKernels {
		t.Run(version, func(t *testing.T) {
			g := lab.Shared(t, lab.Config{Kernel: version, MemMB: 256, QMP: true, Append: []string{"umbra.state=0"}})
			k, err := kernel.Attach(context.Background(), open(t, g), kernel.Options{})
			if err != nil {
				t.Fatal(err)
			}
			link, err := g.Ask(context.Background(), "readlink /proc/1/ns/uts")
			if err != nil {
				t.Fatal(err)
			}
			var uts uint64
			if _, err := fmt.Sscanf(string(link), "uts:[%d]", &uts); err != nil {
				t.Fatalf("%q: %v", link, err)
			}
			addr, err := k.Symbol("init_task")
			if err != nil {
				t.Fatal(err)
			}
			for expr, want := range map[string]any{
				"init_task.comm":                                        "swapper/0",
				"init_uts_ns.name.release":                              release(t, g),
				"init_task.nsproxy->uts_ns->ns.inum":                    uts,
				"init_task.pid":                                         int64(0),
				"&init_task":                                            addr,
				"((struct task_struct *)&init_task)->comm":              "swapper/0",
				"per_cpu(runqueues, 0).cpu":                             int64(0),
				"per_cpu(runqueues, 0).idle->comm":                      "swapper/0",
				"(struct task_struct *)((unsigned long)&init_task + 0)": addr,
				"(u8)(255 + 2)":                                         uint64(1),
				"(signed char)255":                                      int64(-1),
			} {
				for _, batch := range []bool{false, true} {
					v, err := k.View(context.Background(), mem.Options{Batch: batch}).Eval(expr)
					if err != nil {
						t.Errorf("%s: %v", expr, err)
					} else if v.Node.Scalar != want {
						t.Errorf("%s = %v, want %v", expr, v.Node.Scalar, want)
					}
				}
			}
			view := k.View(context.Background(), mem.Options{})
			if v, err := view.Eval("init_task"); err != nil || len(v.Node.Fields) < 100 || *v.Addr != addr {
				t.Errorf("init_task: %d members, %v", len(v.Node.Fields), err)
			}
			for expr, want := range map[string]error{
				"nosuchsymbol": kernel.ErrNoSymbol, "max_pfn": kernel.ErrNoTypeKnown, "init_task.": kernel.ErrSyntax,
				"*(int *)8": mem.ErrNotPresent, "*(int *)0x8000000000000000": mem.ErrBadAddress,
			} {
				if v, err := view.Eval(expr); !errors.Is(err, want) {
					t.Errorf("%s = %v, %v, want %v", expr, v, err, want)
				}
			}
			for _, expr := range []string{"per_cpu(runqueues, 63)", "per_cpu(runqueues, 100000)", "runqueues", "init_task.nosuch", "*init_task", "&1", "(struct task_struct)1", "(nosuchtype *)1"} {
				if v, err := view.Eval(expr); err == nil {
					t.Errorf("%s = %v", expr, v)
				}
			}
			text, err := view.VMCoreInfo()
			if err != nil || !strings.HasPrefix(string(text), "OSRELEASE="+release(t, g)+"\n") {
				t.Errorf("vmcoreinfo %.60q, %v", text, err)
			}
		})
	}
}
