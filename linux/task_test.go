package linux

import (
	"bytes"
	"context"
	"fmt"
	pathpkg "path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// TestTasks compares every process with what the guest's own /proc says of it.
func TestTasks(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		tree := ask(t, g)
		var last []Task
		for _, batch := range []bool{false, true} {
			v := view(t, k, mem.Options{Batch: batch})
			tasks, err := Tasks(v, TaskOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Findings() {
				t.Errorf("finding: %v", f)
			}
			compareTasks(t, tasks, tree)
			if rounds := v.Snapshot().Stats().Rounds; batch && rounds > 12 {
				t.Errorf("%d tasks in %d rounds, more than 12", len(tasks), rounds)
			}
			last = tasks
		}
		compareCPU(t, g, last, tree)
	})
}

// compareCPU holds each process's CPU time between what the guest said before and
// says after. The kernel rounds user and system time down to ticks, each on its own.
func compareCPU(t *testing.T, g *lab.Guest, tasks []Task, before *lab.ProcTree) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := g.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	after, err := g.Proc(ctx, "all", "stat")
	if err != nil {
		t.Fatal(err)
	}
	ticks := func(tree *lab.ProcTree, pid int) (n float64, ok bool) {
		stat, ok := tree.Files[fmt.Sprintf("%d/stat", pid)]
		if !ok {
			return 0, false
		}
		f := statFields(t, stat)
		user, _ := strconv.Atoi(f[13])
		system, _ := strconv.Atoi(f[14])
		return float64(user + system), true
	}
	for _, task := range tasks {
		lo, okLo := ticks(before, task.PID)
		hi, okHi := ticks(after, task.PID)
		if got := *task.CPUSeconds * 100; okLo && okHi && (got < lo-1 || got > hi+3) {
			t.Errorf("pid %d (%s): %.0f ticks of CPU, the guest said %.0f before and %.0f after", task.PID, task.Comm, got, lo, hi)
		}
	}
}

// TestThreads compares the threads listed with the guest's /proc/PID/task.
func TestThreads(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		tree := ask(t, g)
		tasks, err := Tasks(view(t, k, mem.Options{}), TaskOptions{Threads: true})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, task := range tasks {
			got[fmt.Sprintf("%d/task/%d", task.PID, task.TID)] = task.Comm
		}
		want := map[string]string{}
		for name := range tree.Files {
			if dir, file := pathpkg.Split(name); file == "stat" && strings.Count(dir, "/") == 3 {
				want[strings.TrimSuffix(dir, "/")] = statFields(t, tree.Files[name])[1]
			}
		}
		if len(want) == 0 {
			t.Fatal("the guest told no threads")
		}
		for name := range want {
			if _, ok := got[name]; !ok {
				t.Errorf("%s (%s) is missing", name, want[name])
			}
		}
		for name := range got {
			if _, ok := want[name]; !ok {
				t.Errorf("%s (%s) is not in the guest", name, got[name])
			}
		}
	})
}

func compareTasks(t *testing.T, tasks []Task, tree *lab.ProcTree) {
	t.Helper()
	byPID := map[int]Task{}
	for _, task := range tasks {
		byPID[task.PID] = task
		if len(task.Errors) > 0 || task.Moved {
			t.Errorf("pid %d %q: errors %q, moved %v", task.PID, task.Comm, task.Errors, task.Moved)
		}
	}
	pids := tree.PIDs()
	if len(pids) < 50 {
		t.Fatalf("the guest told only %d processes", len(pids))
	}
	for _, pid := range pids {
		task, ok := byPID[pid]
		if !ok {
			t.Errorf("pid %d is missing", pid)
			continue
		}
		delete(byPID, pid)
		compareTask(t, task, tree)
	}
	for pid, task := range byPID {
		t.Errorf("pid %d %q is not in the guest", pid, task.Comm)
	}
}

// statFields takes /proc/PID/stat apart: pid, comm without parentheses, state, …
func statFields(t *testing.T, b []byte) []string {
	t.Helper()
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || shut < open {
		t.Fatalf("stat: %q", b)
	}
	return append([]string{strings.TrimSpace(string(b[:open])), string(b[open+1 : shut])}, strings.Fields(string(b[shut+1:]))...)
}

// statusFields takes /proc/PID/status apart.
func statusFields(b []byte) map[string][]string {
	out := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			out[key] = strings.Fields(value)
		}
	}
	return out
}

func compareTask(t *testing.T, task Task, tree *lab.ProcTree) {
	t.Helper()
	pid := strconv.Itoa(task.PID)
	stat := statFields(t, tree.Files[pid+"/stat"])
	status := statusFields(tree.Files[pid+"/status"])
	num := func(i int) int64 {
		n, err := strconv.ParseInt(stat[i-1], 10, 64) // numbered as in proc(5)
		if err != nil {
			t.Fatalf("pid %s: stat field %d: %v", pid, i, err)
		}
		return n
	}
	same := func(what string, got, want any) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("pid %s (%s): %s is %v, the guest says %v", pid, stat[1], what, got, want)
		}
	}
	comm := stat[1]
	if worker(comm) {
		// What a worker did last changes as the guest answers.
		same("comm", workerID(task.Comm), workerID(comm))
	} else {
		same("comm", task.Comm, comm)
	}
	// Who runs changes as the guest answers, and a kernel thread can wake after it.
	if stat[2] != "R" && !worker(comm) && !(task.KernelThread && task.State == "R") {
		same("state", task.State, stat[2])
	}
	same("ppid", task.PPID, num(4))
	same("nice", task.Nice, num(19))
	same("threads", *task.Threads, num(20))
	same("uid", []uint32{task.UID, task.EUID}, fmt.Sprintf("[%s %s]", status["Uid"][0], status["Uid"][1]))
	same("gid", task.GID, status["Gid"][0])
	same("ns_pids", fmt.Sprint(task.NSPIDs), fmt.Sprint(status["NSpid"]))
	same("start", int64(task.Start/1e7), num(22))
	compareMemory(t, task, tree, num(23), num(24), same)
}

func (t Task) argsText() string { return strings.Join(t.Args, " ") }

func worker(comm string) bool { return strings.HasPrefix(comm, "kworker/") }

// workerID cuts off what a worker works on.
func workerID(comm string) string {
	if i := strings.IndexAny(comm, "+-"); i >= 0 && !strings.HasPrefix(comm, "kworker/R-") {
		return comm[:i]
	}
	return comm
}

func compareMemory(t *testing.T, task Task, tree *lab.ProcTree, vsize, rssPages int64, same func(string, any, any)) {
	t.Helper()
	pid := strconv.Itoa(task.PID)
	text := func(s *string) string {
		if s == nil {
			return "(none)"
		}
		return *s
	}
	link := func(name string) string {
		if s, ok := tree.Links[pid+"/"+name]; ok {
			return s
		}
		return "(none)"
	}
	same("exe", text(task.Exe), link("exe"))
	same("cwd", text(task.Cwd), link("cwd"))
	if cmdline := tree.Files[pid+"/cmdline"]; !slices.Equal(task.Args, splitArgs(cmdline)) {
		t.Errorf("pid %s: args are %q, the guest says %q", pid, task.Args, cmdline)
	}
	if task.VSize == nil {
		same("vsize", 0, vsize)
		return
	}
	oracle := strings.Contains(task.argsText(), "oracle")
	if !oracle {
		same("vsize", *task.VSize, vsize)
		same("rss", *task.RSS, rssPages*mem.PageSize)
	}
}

// TestOneProcess lists processes one at a time: each must be as in the list of all,
// with the CPU time of its threads.
func TestOneProcess(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		ask(t, g, "1", "stat")
		all, err := Tasks(view(t, k, mem.Options{}), TaskOptions{Threads: true})
		if err != nil {
			t.Fatal(err)
		}
		whole, err := Tasks(view(t, k, mem.Options{}), TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		threaded := 0
		for _, want := range whole {
			got, err := Tasks(view(t, k, mem.Options{}), TaskOptions{PID: want.PID})
			if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
				t.Errorf("pid %d alone: %+v, %v; among all: %+v", want.PID, got, err, want)
			}
			threads, err := Tasks(view(t, k, mem.Options{}), TaskOptions{PID: want.PID, Threads: true})
			among := slices.DeleteFunc(slices.Clone(all), func(x Task) bool { return x.PID != want.PID })
			if err != nil || !reflect.DeepEqual(threads, among) {
				t.Errorf("pid %d: %d threads alone, %d among all, %v", want.PID, len(threads), len(among), err)
			}
			if len(threads) > 1 {
				threaded++
			}
		}
		if threaded < 5 {
			t.Errorf("only %d processes have threads", threaded)
		}
	})
}
