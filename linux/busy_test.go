package linux

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// busyRounds is how often everything is listed; UMBRA_BUSY_ROUNDS overrides it.
const busyRounds = 40

// Of a busy machine's rows at most one in busyMoved may have moved to the end, and one
// in busyErrors have an error, and busyFew besides: of objects that went away while
// they were read.
const (
	busyMoved  = 100
	busyErrors = 1000
	busyFew    = 3
)

// TestBusy lists everything from a healthy machine that makes and ends processes,
// sockets, files, areas, mounts and namespaces as fast as it can: nothing there is
// a finding, no listing fails, and what lasts is listed each time without an error.
func TestBusy(t *testing.T) {
	rounds := busyRounds
	if s := os.Getenv("UMBRA_BUSY_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		rounds = n
	}
	version := os.Getenv("UMBRA_BUSY_KERNEL")
	if version == "" {
		version = "6.12"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	g, err := lab.Boot(ctx, lab.Config{Kernel: version, MemMB: 384, Append: []string{"umbra.state=0", "umbra.procs=50"}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	k := attach(t, g)
	if _, err := g.Ask(ctx, "exec storm"); err != nil {
		t.Fatal(err)
	}
	steady := steadyProcesses(t, k)
	first := lastPID(ctx, t, g)
	names := slices.Sorted(maps.Keys(listings))
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			b := busy{steady: steady}
			for i := range rounds {
				b.list(ctx, t, k, name, mem.Options{Batch: i%2 == 1})
			}
			b.check(t)
		})
	}
	t.Run("hidden", func(t *testing.T) { hideTasks(ctx, t, k) })
	stormy := map[string]bool{}
	tasks, err := Tasks(view(t, k, mem.Options{}), TaskOptions{})
	for _, task := range tasks {
		stormy[task.Comm] = true
	}
	for _, comm := range []string{"storm-processes", "storm-sockets", "storm-files"} {
		if !stormy[comm[:min(len(comm), 15)]] {
			t.Errorf("%s has ended (%v): %s", comm, err, g.Console())
		}
	}
	if n := lastPID(ctx, t, g) - first; n < busyRounds {
		t.Errorf("the machine made only %d processes meanwhile", n)
	}
}

// lastPID returns the process id that was given last.
func lastPID(ctx context.Context, t *testing.T, g *lab.Guest) int {
	t.Helper()
	b, err := g.Ask(ctx, "cat /proc/sys/kernel/ns_last_pid")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// steadyProcesses returns the processes that stand still throughout.
func steadyProcesses(t *testing.T, k *kernel.Kernel) map[int]bool {
	t.Helper()
	tasks, err := Tasks(view(t, k, mem.Options{}), TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	steady := map[int]bool{}
	for _, task := range tasks {
		if len(task.Args) > 0 && strings.HasPrefix(task.Args[0], "idle-") {
			steady[task.PID] = true
		}
	}
	if len(steady) < 50 {
		t.Fatalf("only %d processes stand still", len(steady))
	}
	return steady
}

// busy is what all rounds of one listing told.
type busy struct {
	steady       map[int]bool
	rows         int
	moved, erred int
	kinds        map[string]int // of errors and findings, without numbers
	findings     int
	slowest      time.Duration
}

func (b *busy) list(ctx context.Context, t *testing.T, k *kernel.Kernel, name string, opts mem.Options) {
	t.Helper()
	v := k.View(ctx, opts)
	defer v.Close()
	begun := time.Now()
	rows, err := listings[name](v)
	b.slowest = max(b.slowest, time.Since(begun))
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	for _, f := range v.Findings() {
		b.findings++
		b.note("finding: " + f.String())
	}
	text, err := json.Marshal(rows)
	if err != nil {
		t.Fatal(err)
	}
	if name == "info" {
		text = fmt.Appendf(nil, "[%s]", text)
	}
	var list []struct {
		PID    int      `json:"pid"`
		TID    int      `json:"tid"`
		Moved  bool     `json:"moved"`
		Errors []string `json:"errors"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	b.rows += len(list)
	found := map[int]bool{}
	for _, row := range list {
		found[row.PID] = true
		if row.Moved {
			b.moved++
		}
		if len(row.Errors) > 0 {
			b.erred++
		}
		for _, e := range row.Errors {
			b.note(e)
			if strings.Contains(e, mem.ErrPending.Error()) {
				t.Errorf("pid %d: %q", row.PID, e)
			}
		}
		if b.steady[row.PID] && (len(row.Errors) > 0 || row.Moved) {
			t.Errorf("pid %d stood still: errors %q, moved %v", row.PID, row.Errors, row.Moved)
		}
	}
	if name == "ps" || name == "maps" || name == "env" || name == "files" {
		for pid := range b.steady {
			if !found[pid] {
				t.Errorf("pid %d stood still and is missing", pid)
			}
		}
	}
}

// numbers are what differs from one error to the next of its kind.
var numbers = regexp.MustCompile(`(0x[0-9a-f]+|[0-9]+)|"[^"]*"`)

func (b *busy) note(what string) {
	if b.kinds == nil {
		b.kinds = map[string]int{}
	}
	what = numbers.ReplaceAllString(what, "N")
	b.kinds[what]++
}

func (b *busy) check(t *testing.T) {
	t.Helper()
	t.Logf("%d rows, %d moved, %d with errors, %d findings, slowest %v", b.rows, b.moved, b.erred, b.findings, b.slowest)
	for _, what := range slices.SortedFunc(maps.Keys(b.kinds), func(x, y string) int { return b.kinds[y] - b.kinds[x] }) {
		t.Logf("%5d times: %s", b.kinds[what], what)
	}
	if b.rows == 0 {
		t.Error("nothing was listed")
	}
	if b.findings > 0 {
		t.Errorf("%d findings on a healthy machine", b.findings)
	}
	if b.moved > b.rows/busyMoved+busyFew {
		t.Errorf("%d of %d rows kept moving", b.moved, b.rows)
	}
	if b.erred > b.rows/busyErrors+busyFew {
		t.Errorf("%d of %d rows have errors", b.erred, b.rows)
	}
}
