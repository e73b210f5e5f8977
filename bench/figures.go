package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/qemu"
)

// small is the guest most figures are measured on: about 100 tasks.
var small = lab.Config{Kernel: "6.12", MemMB: 512}

// attachFigures compares attaching to a small and to a large machine, cold and
// with the cache, taking turns so that noise meets both.
func attachFigures(b *bench) error {
	// Both have the same few tasks: only the size differs.
	idle := []string{"umbra.state=0"}
	var names []string
	for _, mb := range []int{512, 16384} {
		name := fmt.Sprintf("a machine of %d MB", mb)
		g, err := b.guest(name, lab.Config{Kernel: "6.12", MemMB: mb, Append: idle})
		if err != nil {
			return err
		}
		defer b.drop(name)
		names = append(names, g.Name())
	}
	dir, err := os.MkdirTemp("", "umbra-bench-cache-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cache, err := kernel.OpenCache(dir)
	if err != nil {
		return err
	}
	for _, way := range []struct {
		name, target string
		cache        *kernel.Cache
	}{{"cold", "150ms", nil}, {"cached", "40ms", cache}} {
		var times [2][]time.Duration
		for i, name := range names {
			t, err := b.sample(func() error { return attachOnce(b.ctx, name, way.cache) })
			if err != nil {
				return err
			}
			times[i] = t
		}
		b.print("attach, 512 MB, "+way.name, times[0], "≤ "+way.target)
		b.print("attach, 16 GB, "+way.name, times[1], "≤ "+way.target)
		b.printf("attach, 16 GB / 512 MB, "+way.name, "≤ 1.2", "%.2f", float64(median(times[1]))/float64(median(times[0])))
	}
	return nil
}

func attachOnce(ctx context.Context, name string, cache *kernel.Cache) error {
	src, err := qemu.Open(ctx, name)
	if err != nil {
		return err
	}
	defer src.Close()
	k, err := kernel.Attach(ctx, src, kernel.Options{Cache: cache})
	if err != nil {
		return err
	}
	return k.Save()
}

// processFigures times the whole program.
func processFigures(b *bench) error {
	g, err := b.guest("a machine with about 100 tasks", small)
	if err != nil {
		return err
	}
	tasks, err := b.umbraRows("ps", g.Name())
	if err != nil {
		return err
	}
	cold, err := b.sample(func() error { return b.umbraRun("ps", g.Name(), "--no-cache") })
	if err != nil {
		return err
	}
	b.print(fmt.Sprintf("umbra ps, %d tasks, whole process, cold", tasks), cold, "≤ 200ms")
	cached, err := b.sample(func() error { return b.umbraRun("ps", g.Name()) })
	if err != nil {
		return err
	}
	b.print(fmt.Sprintf("umbra ps, %d tasks, whole process, cached", tasks), cached, "≤ 80ms")
	return b.privateMemory("umbra ps, cold: peak private memory", "ps", g.Name(), "--no-cache")
}

func (b *bench) umbraRun(args ...string) error {
	out, err := exec.CommandContext(b.ctx, b.umbra, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("umbra %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// umbraRows returns how many rows a listing has.
func (b *bench) umbraRows(args ...string) (int, error) {
	out, err := exec.CommandContext(b.ctx, b.umbra, append(args, "-o", "csv", "--columns", "pid")...).Output()
	return strings.Count(string(out), "\n") - 1, err
}

// privateMemory runs the program a few times and prints the most RssAnon seen,
// looking every 200 µs. The kernel keeps a peak of RSS, but not of its private part.
func (b *bench) privateMemory(name string, args ...string) error {
	var peak uint64
	for range 5 {
		cmd := exec.CommandContext(b.ctx, b.umbra, args...)
		if err := cmd.Start(); err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		for running := true; running; {
			select {
			case err := <-done:
				if err != nil {
					return fmt.Errorf("umbra %s: %w", strings.Join(args, " "), err)
				}
				running = false
			case <-time.After(200 * time.Microsecond):
				peak = max(peak, rssAnon(cmd.Process.Pid))
			}
		}
	}
	b.printf(name, "≤ 80 MB", "%.1f MB", float64(peak)/1e6)
	return nil
}

// rssAnon returns a process's private resident memory in bytes, 0 when it has ended.
func rssAnon(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, _ := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// attachTo attaches and keeps the machine open.
func attachTo(ctx context.Context, g *lab.Guest) (*kernel.Kernel, error) {
	src, err := qemu.Open(ctx, g.Name())
	if err != nil {
		return nil, err
	}
	return kernel.Attach(ctx, src, kernel.Options{})
}

// walkFigures times the walks themselves, on a kernel attached to already.
func walkFigures(b *bench) error {
	g, err := b.guest("a machine with about 100 tasks", small)
	if err != nil {
		return err
	}
	k, err := attachTo(b.ctx, g)
	if err != nil {
		return err
	}
	defer k.Source().Close()
	return b.walks(k, "≤ 1ms", true)
}

// manyFigures is walkFigures with 10,000 tasks.
func manyFigures(b *bench) error {
	b.drop("a machine with about 100 tasks")
	g, err := b.guest("a machine with 10,000 tasks", lab.Config{Kernel: "6.12", MemMB: 2048, Append: []string{"umbra.procs=10000", "umbra.socks=2000"}})
	if err != nil {
		return err
	}
	k, err := attachTo(b.ctx, g)
	if err != nil {
		return err
	}
	defer k.Source().Close()
	if err := b.walks(k, "≤ 10µs a task", false); err != nil {
		return err
	}
	return b.privateMemory("umbra ps, 10,000 tasks: peak private memory", "ps", g.Name())
}

// walks prints what listing costs: in all, for each row, and in pages.
func (b *bench) walks(k *kernel.Kernel, target string, remote bool) error {
	for _, w := range []struct {
		name, target string
		list         func(v *kernel.View) (int, error)
	}{
		{"pid, comm, uid", target, func(v *kernel.View) (int, error) {
			rows, err := linux.Tasks(v, linux.TaskOptions{Brief: true})
			return len(rows), err
		}},
		{"ps", "", func(v *kernel.View) (int, error) {
			rows, err := linux.Tasks(v, linux.TaskOptions{})
			return len(rows), err
		}},
		{"sockets", "", func(v *kernel.View) (int, error) {
			rows, err := linux.Sockets(v, linux.SocketOptions{})
			return len(rows), err
		}},
		{"files", "", func(v *kernel.View) (int, error) {
			rows, err := linux.Files(v, linux.FileOptions{})
			return len(rows), err
		}},
	} {
		rows, pages := 0, 0
		times, err := b.sample(func() error {
			v := k.View(b.ctx, mem.Options{})
			n, err := w.list(v)
			rows, pages = n, v.Snapshot().Stats().Pages
			v.Close()
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		name := fmt.Sprintf("walk %s, %d rows", w.name, rows)
		b.print(name, times, w.target)
		b.printf(name+": time and pages a row", "", "%.1f µs, %.1f pages", float64(median(times).Nanoseconds())/1e3/float64(rows), float64(pages)/float64(rows))
	}
	if !remote {
		return nil
	}
	return b.rounds(k)
}

// rounds prints how many calls to a source whose round trips cost a listing takes.
func (b *bench) rounds(k *kernel.Kernel) error {
	far, err := kernel.Attach(b.ctx, farSource{k.Source()}, kernel.Options{})
	if err != nil {
		return err
	}
	for _, r := range []struct {
		name, target string
		list         func(v *kernel.View) error
	}{
		{"ps", "≤ 12", func(v *kernel.View) error { _, err := linux.Tasks(v, linux.TaskOptions{}); return err }},
		{"sockets", "≤ 16", func(v *kernel.View) error { _, err := linux.Sockets(v, linux.SocketOptions{}); return err }},
	} {
		v := far.View(b.ctx, mem.Options{})
		if err := r.list(v); err != nil {
			return err
		}
		b.printf("rounds of "+r.name, r.target, "%d", v.Snapshot().Stats().Rounds)
	}
	return nil
}

// farSource says that round trips cost.
type farSource struct{ source.Source }

func (f farSource) Info() source.Info {
	i := f.Source.Info()
	i.Local = false
	return i
}

func (f farSource) Registers(ctx context.Context) ([]source.Registers, error) {
	return f.Source.(source.RegisterReader).Registers(ctx)
}

// recordFigure prints how large a recording of three listings is.
func recordFigure(b *bench) error {
	g, err := b.guest("a machine with about 100 tasks", small)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "umbra-bench-record-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, command := range []string{"ps", "sockets", "modules"} {
		file := filepath.Join(dir, command)
		if err := b.umbraRun("record", g.Name(), file, "--", command); err != nil {
			return err
		}
		fi, err := os.Stat(file)
		if err != nil {
			return err
		}
		b.printf("recording of "+command, "≤ 8 MB", "%.1f MB", float64(fi.Size())/1e6)
	}
	return nil
}
