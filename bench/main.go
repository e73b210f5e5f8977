// Command bench prints every figure that Umbra promises, measured on real guests:
//
//	go run ./bench            all of them, as the README quotes them
//	go run ./bench -run walk  those whose name contains "walk"
//
// Machines are noisy: compare ratios within one run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/umbravm/umbra/internal/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		stop()
		os.Exit(1)
	}
}

// bench is one run of the program.
type bench struct {
	ctx    context.Context
	umbra  string // the binary under test
	only   string
	n      int // samples of each figure
	out    *tabwriter.Writer
	guests map[string]*lab.Guest
}

func run(ctx context.Context) error {
	only := flag.String("run", "", "only figures whose name contains this")
	n := flag.Int("n", 15, "samples of each figure")
	profile := flag.String("cpuprofile", "", "write a CPU profile of this program to a file")
	flag.Parse()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}

	dir, err := os.MkdirTemp("", "umbra-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{ctx: ctx, umbra: filepath.Join(dir, "umbra"), only: *only, n: *n, guests: map[string]*lab.Guest{}}
	build := exec.CommandContext(ctx, "go", "build", "-o", b.umbra, "./cmd/umbra")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build umbra: %w\n%s", err, out)
	}
	defer b.close()

	fmt.Printf("%s, %s, %d CPUs, %s\n", time.Now().UTC().Format("2006-01-02"), cpuModel(), runtime.NumCPU(), runtime.Version())
	b.out = tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(b.out, "figure\tmedian\tmin\tmax\ttarget")
	for _, f := range figures {
		if !strings.Contains(f.name, b.only) {
			continue
		}
		if err := f.run(b); err != nil {
			b.out.Flush()
			return fmt.Errorf("%s: %w", f.name, err)
		}
		b.out.Flush()
	}
	return nil
}

// figures are run in this order; those of one guest follow each other.
var figures = []struct {
	name string
	run  func(b *bench) error
}{
	{"attach 512 MB against 16 GB", attachFigures},
	{"process umbra ps, 100 tasks", processFigures},
	{"walk 100 tasks", walkFigures},
	{"walk 10,000 tasks", manyFigures},
	{"record", recordFigure},
}

// guest boots a machine once and keeps it until the end.
func (b *bench) guest(name string, c lab.Config) (*lab.Guest, error) {
	if g := b.guests[name]; g != nil {
		return g, nil
	}
	c.QMP = true
	fmt.Fprintf(os.Stderr, "bench: booting %s …\n", name)
	g, err := lab.Boot(b.ctx, c)
	if err == nil {
		b.guests[name] = g
	}
	return g, err
}

// drop ends a guest that is not needed any more.
func (b *bench) drop(name string) {
	if g := b.guests[name]; g != nil {
		g.Close()
		delete(b.guests, name)
	}
}

func (b *bench) close() {
	for name := range b.guests {
		b.drop(name)
	}
}

// sample runs f once uncounted and then n times, and returns the times, ascending.
func (b *bench) sample(f func() error) ([]time.Duration, error) {
	var times []time.Duration
	for i := range b.n + 1 {
		begun := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		if i > 0 {
			times = append(times, time.Since(begun))
		}
		if err := b.ctx.Err(); err != nil {
			return nil, err
		}
	}
	slices.Sort(times)
	return times, nil
}

// print writes one figure.
func (b *bench) print(name string, times []time.Duration, target string) {
	fmt.Fprintf(b.out, "%s\t%v\t%v\t%v\t%s\n", name, short(median(times)), short(times[0]), short(times[len(times)-1]), target)
}

// printf writes a figure that is no time.
func (b *bench) printf(name, target, format string, args ...any) {
	fmt.Fprintf(b.out, "%s\t%s\t\t\t%s\n", name, fmt.Sprintf(format, args...), target)
}

func median(times []time.Duration) time.Duration { return times[len(times)/2] }

// short rounds to three digits.
func short(d time.Duration) time.Duration {
	for unit := time.Duration(1); ; unit *= 10 {
		if d/unit < 1000 {
			return d.Round(unit)
		}
	}
}

// cpuModel is the processor's name as /proc/cpuinfo has it.
func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
