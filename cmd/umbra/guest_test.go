package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/linux"
)

// program runs umbra and returns what it printed and its exit status.
func program(t *testing.T, args ...string) (stdout, stderr []byte, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "umbra", args...)
	cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+t.TempDir())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), errs.Bytes(), status
}

// run0 runs the program, which must end with status 0.
func run0(t *testing.T, args ...string) []byte {
	t.Helper()
	stdout, stderr, status := program(t, args...)
	if status != exitDone {
		t.Fatalf("umbra %s: status %d\n%s", strings.Join(args, " "), status, stderr)
	}
	return stdout
}

// paused returns the shared guest, which stands still for the test.
func paused(t *testing.T) *lab.Guest {
	t.Helper()
	g := lab.Shared(t, lab.Config{Kernel: "6.1", MemMB: 384, QMP: true})
	if err := g.Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Resume(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return g
}

var listings = []string{"ps", "sockets", "files", "maps", "mounts", "modules", "netdevs", "dmesg", "env", "namespaces", "cgroups"}

// Every listing gives an array of objects that all have the same keys, those that
// --help lists; a header and as many lines as CSV; and a table.
func TestListings(t *testing.T) {
	g := paused(t)
	for _, name := range listings {
		t.Run(name, func(t *testing.T) {
			var rows []map[string]json.RawMessage
			if err := json.Unmarshal(run0(t, name, g.Name(), "-o", "json"), &rows); err != nil {
				t.Fatal(err)
			}
			if len(rows) == 0 {
				t.Fatal("nothing listed")
			}
			header, _, _ := strings.Cut(string(run0(t, name, g.Name(), "-o", "csv")), "\n")
			keys := strings.Split(header, ",")
			for i, row := range rows {
				for _, k := range keys {
					if _, ok := row[k]; !ok || len(row) != len(keys) {
						t.Fatalf("row %d has not the keys %q", i, keys)
					}
				}
			}
			if help := run0(t, name, "--help"); !bytes.Contains(help, []byte(header)) {
				t.Errorf("help does not list the keys %s", header)
			}
			if text := run0(t, name, g.Name()); len(text) == 0 || bytes.ContainsAny(text, "\x1b\x07\x00") {
				t.Error("no table, or one that steers terminals")
			}
		})
	}
}

func TestInfo(t *testing.T) {
	g := paused(t)
	var info linux.Info
	if err := json.Unmarshal(run0(t, "info", g.Name(), "-o", "json"), &info); err != nil {
		t.Fatal(err)
	}
	if info.Name != g.Name() || info.Release == nil || *info.Release != g.Kernel().Release || info.BTFHash == nil {
		t.Errorf("info %+v", info)
	}
	var vms []struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
	}
	if err := json.Unmarshal(run0(t, "vms", "-o", "json"), &vms); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(vms, func(m struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
	}) bool {
		return m.Name == g.Name() && m.PID == g.PID()
	}) {
		t.Errorf("vms does not list %s, %d: %v", g.Name(), g.PID(), vms)
	}
}

// What a machine answers is what its dump and its recorded pages answer.
func TestDumpAndRecord(t *testing.T) {
	g := paused(t)
	dir := t.TempDir()
	core, lime, raw, bundle := filepath.Join(dir, "core"), filepath.Join(dir, "lime"), filepath.Join(dir, "raw"), filepath.Join(dir, "bundle")
	want := run0(t, "ps", g.Name(), "-o", "json")
	run0(t, "dump", g.Name(), core)
	run0(t, "dump", g.Name(), lime, "--format", "lime")
	_, stderr, status := program(t, "dump", g.Name(), raw, "--format", "raw")
	_, layout, ok := strings.Cut(strings.TrimSpace(string(stderr)), "--layout ")
	if status != exitDone || !ok {
		t.Fatalf("raw dump: status %d, %s", status, stderr)
	}
	run0(t, "record", g.Name(), bundle, "--", "ps", "--", "sockets", "--", "modules")
	if fi, err := os.Stat(bundle); err != nil || fi.Size() > 8<<20 {
		t.Errorf("the bundle has %d bytes, %v", fi.Size(), err)
	}
	for _, args := range [][]string{{core}, {lime}, {raw, "--layout", layout}, {bundle}} {
		if got := run0(t, append([]string{"ps", "-o", "json"}, args...)...); !bytes.Equal(got, want) {
			t.Errorf("ps of %v differs from that of the machine", args)
		}
	}
	if got := run0(t, "modules", bundle); !bytes.Equal(got, run0(t, "modules", g.Name())) {
		t.Error("modules of the bundle differ from those of the machine")
	}
	if _, stderr, status := program(t, "dump", g.Name(), core); status != exitFailed || !bytes.Contains(stderr, []byte("hint: --force")) {
		t.Errorf("an existing file: status %d, %s", status, stderr)
	}
	run0(t, "dump", g.Name(), core, "--force")
}

func TestMemoryCommands(t *testing.T) {
	g := paused(t)
	banner := run0(t, "read", g.Name(), "linux_banner", "64", "-o", "raw")
	if !bytes.HasPrefix(banner, []byte("Linux version "+g.Kernel().Release)) {
		t.Errorf("linux_banner holds %q", banner)
	}
	if hex := run0(t, "read", g.Name(), "linux_banner", "16"); !bytes.Contains(hex, []byte("4c 69 6e 75 78 20 76 65  72 73 69 6f 6e 20")) {
		t.Errorf("hex: %s", hex)
	}
	if elf := run0(t, "read", g.Name(), "0x400000", "4", "--pid", "1", "-o", "raw"); string(elf) != "\x7fELF" {
		t.Errorf("init's image begins with %q", elf)
	}
	if out, stderr, status := program(t, "read", g.Name(), "0", "16", "-o", "raw"); status != exitFailed || len(out) > 0 {
		t.Errorf("page 0: status %d, %q, %s", status, out, stderr)
	}
	if out := run0(t, "print", g.Name(), "init_task.comm"); string(out) != "init_task.comm = \"swapper/0\"\n" {
		t.Errorf("print: %s", out)
	}
	var value struct{ Value string }
	if err := json.Unmarshal(run0(t, "print", g.Name(), "init_task.comm", "-o", "json"), &value); err != nil || value.Value != "swapper/0" {
		t.Errorf("print as JSON: %v, %v", value, err)
	}
	if out := run0(t, "type", g.Name(), "list_head"); !bytes.HasPrefix(out, []byte("struct list_head {\n    struct list_head *next; ")) {
		t.Errorf("type: %s", out)
	}
	symbol := string(run0(t, "symbols", g.Name(), "init_task", "-o", "csv", "--columns", "address"))
	_, addr, _ := strings.Cut(strings.TrimSpace(symbol), "\n")
	if out := run0(t, "symbols", g.Name(), addr); !bytes.Contains(out, []byte("init_task")) {
		t.Errorf("symbol at %s: %s", addr, out)
	}
	if _, stderr, _ := program(t, "ps", g.Name(), "-v"); !bytes.Contains(stderr, []byte("umbra: attached by registers in ")) {
		t.Errorf("-v: %s", stderr)
	}
}

// Ctrl-C ends a dump, and leaves neither the file nor a part of it.
func TestInterrupt(t *testing.T) {
	g := lab.Shared(t, lab.Config{Kernel: "6.1", MemMB: 384, QMP: true})
	dir := t.TempDir()
	cmd := exec.Command("umbra", "dump", g.Name(), filepath.Join(dir, "core"), "--pause")
	cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		t.Log("the dump was faster than the signal")
	case !errors.As(err, &exit) || exit.ExitCode() != exitSignal:
		t.Errorf("%v", err)
	default:
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if _, err := g.Ask(context.Background(), "cat /proc/uptime"); err != nil {
		t.Errorf("the machine does not run on: %v", err)
	}
}

func TestTree(t *testing.T) {
	tasks := []linux.Task{
		{PID: 1, TID: 1, Comm: "init", Args: []string{"/init"}},
		{PID: 5, TID: 5, PPID: 1, Comm: "a"}, {PID: 6, TID: 6, PPID: 5, Comm: "b"}, {PID: 7, TID: 7, PPID: 1, Comm: "\x1b"},
		{PID: 8, TID: 8, PPID: 9, Comm: "circle"}, {PID: 9, TID: 9, PPID: 8, Comm: "circle"},
		{PID: 1, TID: 2, Comm: "thread"},
	}
	var out bytes.Buffer
	if err := writeTree(&out, tasks, 0); err != nil {
		t.Fatal(err)
	}
	want := `      1  /init
      5  ├─ [a]
      6  │  └─ [b]
      7  ├─ [\x1b]
      2  └─ {thread}
      8  [circle]
      9  └─ [circle]
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	out.Reset()
	moved := []linux.Task{{PID: 1, TID: 1, Comm: "a long name that is cut", Moved: true}, {PID: 2, TID: 2, Comm: "b"}}
	if err := writeTree(&out, moved, 20); err != nil || !strings.HasPrefix(out.String(), "      1  [a long…  !\n      2  [b]\n! 1 of 2 kept changing") {
		t.Errorf("a task that moved: %v\n%s", err, &out)
	}
	deep := make([]linux.Task, 100000)
	for i := range deep {
		deep[i] = linux.Task{PID: i + 1, TID: i + 1, PPID: i, Comm: "x"}
	}
	out.Reset()
	if err := writeTree(&out, deep, 80); err != nil || bytes.Count(out.Bytes(), []byte("\n")) != len(deep) {
		t.Errorf("a chain of %d: %v", len(deep), err)
	}
}

func TestParseLength(t *testing.T) {
	for in, want := range map[string]uint64{"16": 16, "0x10": 16, "4K": 4096, "2M": 2 << 20, "1G": 1 << 30} {
		if got, err := parseLength(in); err != nil || got != want {
			t.Errorf("parseLength(%q) = %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0", "K", "-1", "4KK", "99999999999G", "1T", "K4"} {
		if got, err := parseLength(in); err == nil {
			t.Errorf("parseLength(%q) = %d", in, got)
		}
	}
}

// A process that does not exist is an error; one that has nothing to list is not.
func TestNoSuchProcess(t *testing.T) {
	g := paused(t)
	for _, name := range []string{"ps", "sockets", "files", "maps", "env"} {
		out, stderr, status := program(t, name, g.Name(), "--pid", "4194303", "-o", "json")
		if status != exitFailed || len(out) > 0 || !bytes.Contains(stderr, []byte("process 4194303: no such process")) {
			t.Errorf("%s: status %d, %q, %s", name, status, out, stderr)
		}
	}
	if out := run0(t, "maps", g.Name(), "--pid", "2", "-o", "json"); string(out) != "[]\n" {
		t.Errorf("maps of a kernel thread: %s", out)
	}
	// One process reads as it does among all.
	_, all, _ := strings.Cut(string(run0(t, "ps", g.Name(), "-o", "csv")), "\n1,1,")
	init, _, _ := strings.Cut(all, "\n")
	if one := run0(t, "ps", g.Name(), "-o", "csv", "--pid", "1"); !strings.HasSuffix(string(one), "\n1,1,"+init+"\n") {
		t.Errorf("ps --pid 1: %swant 1,1,%s", one, init)
	}
	var rows []linux.Task
	if err := json.Unmarshal(run0(t, "ps", g.Name(), "--threads", "--pid", "1", "-o", "json"), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) < 2 || len(rows) != *rows[0].Threads {
		t.Errorf("%d threads of init", len(rows))
	}
}

// A recording answers what it was made for. Anything else is an error that says so,
// not a list that looks like an answer.
func TestRecordingLacks(t *testing.T) {
	g := paused(t)
	dir := t.TempDir()
	bundle := filepath.Join(dir, "bundle")
	if _, stderr, status := program(t, "record", g.Name(), bundle, "--pause", "--", "ps", "--", "modules"); status != exitDone {
		t.Fatalf("record: status %d, %s", status, stderr)
	}
	for _, name := range []string{"sockets", "files", "dmesg", "info", "netdevs"} {
		out, stderr, status := program(t, name, bundle, "-o", "json")
		if status != exitFailed || string(out) == "[]\n" || !bytes.Contains(stderr, []byte("not recorded")) ||
			!bytes.Contains(stderr, []byte("hint: it was recorded with -- ps -- modules;")) || bytes.Contains(stderr, []byte("finding")) {
			t.Errorf("%s: status %d, %.200s, %s", name, status, out, stderr)
		}
	}
	core := filepath.Join(dir, "core")
	if _, stderr, status := program(t, "dump", bundle, core); status != exitFailed || !bytes.Contains(stderr, []byte("holds only the pages")) {
		t.Errorf("dump: status %d, %s", status, stderr)
	}
	if _, err := os.Lstat(core); err == nil {
		t.Error("a recording was dumped as if it were the machine's memory")
	}
}
