package linux

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// TestFiles compares every open descriptor with the guest's own /proc/PID/fd and
// /proc/PID/fdinfo.
func TestFiles(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		tree := ask(t, g, "all", "fd,fdinfo,stat")
		for _, batch := range []bool{false, true} {
			v := view(t, k, mem.Options{Batch: batch})
			files, err := Files(v, FileOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Findings() {
				t.Errorf("finding: %v", f)
			}
			compareFiles(t, files, tree)
			checkKinds(t, files)
			if rounds := v.Snapshot().Stats().Rounds; batch && rounds > 18 {
				t.Errorf("%d files in %d rounds, more than 18", len(files), rounds)
			}
		}
	})
}

// ownDirectory is what the oracle had open only while it listed itself.
var ownDirectory = regexp.MustCompile(`^/proc/([0-9]+)/(fd|fdinfo|ns|task)$`)

func compareFiles(t *testing.T, files []File, tree *lab.ProcTree) {
	t.Helper()
	want := map[string]string{}
	for name, target := range tree.Links {
		pid, rest, _ := strings.Cut(name, "/")
		if m := ownDirectory.FindStringSubmatch(target); strings.HasPrefix(rest, "fd/") && (m == nil || m[1] != pid) {
			want[name] = target
		}
	}
	if len(want) < least(t, 500) {
		t.Fatalf("the guest told of %d descriptors only", len(want))
	}
	for _, f := range files {
		name := fmt.Sprintf("%d/fd/%d", f.PID, f.FD)
		if len(f.Errors) > 0 || f.Moved || f.Path == nil || f.Type == nil || f.Deleted == nil {
			t.Errorf("%s: moved %v, errors %q", name, f.Moved, f.Errors)
			continue
		}
		target, ok := want[name]
		if delete(want, name); !ok || *f.Path != target {
			t.Errorf("%s: %q, the guest says %q (%v)", name, *f.Path, target, ok)
		}
		if deleted := strings.HasSuffix(target, " (deleted)") && target != "/tmp/files/alive (deleted)"; *f.Deleted != deleted {
			t.Errorf("%s: deleted %v, %q", name, *f.Deleted, target)
		}
		compareFDInfo(t, f, string(tree.Files[fmt.Sprintf("%d/fdinfo/%d", f.PID, f.FD)]))
	}
	for name, target := range want {
		t.Errorf("%s: %q is missing", name, target)
	}
}

// compareFDInfo compares a descriptor with its /proc/PID/fdinfo text.
func compareFDInfo(t *testing.T, f File, info string) {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(info) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":\t")
		if _, ok := fields[key]; !ok {
			fields[key] = value
		}
	}
	check := func(key, got string, required bool) {
		want, ok := fields[key]
		if !ok && required || ok && want != got {
			t.Errorf("%d/fdinfo/%d: %s %q, the guest says %q (%v)", f.PID, f.FD, key, got, want, ok)
		}
	}
	if f.Pos == nil || f.Flags == nil || f.MountID == nil || f.Inode == nil {
		t.Errorf("%d/fdinfo/%d: not read", f.PID, f.FD)
		return
	}
	check("pos", fmt.Sprint(*f.Pos), true)
	check("flags", fmt.Sprintf("0%o", *f.Flags), true)
	check("mnt_id", fmt.Sprint(*f.MountID), true)
	check("ino", fmt.Sprint(*f.Inode), false) // since 5.14
	if m := regexp.MustCompile(`^\w+:\[(\d+)\]$`).FindStringSubmatch(*f.Path); m != nil && m[1] != fmt.Sprint(*f.Inode) {
		t.Errorf("%d/fd/%d: inode %d, %s", f.PID, f.FD, *f.Inode, *f.Path)
	}
}

// checkKinds looks for each kind of file the guest's program opened (guest/files.go).
func checkKinds(t *testing.T, files []File) {
	t.Helper()
	if !definite(t) {
		return
	}
	want := map[string]string{
		"/tmp/files/regular": "regular", "/tmp/files/with space": "regular", "/tmp/files/with\nnewline": "regular",
		"/tmp/files/deleted (deleted)": "regular", "/tmp/files": "directory", "/dev/null": "chardev",
		"/tmp/files/fifo": "fifo", "/proc/1/status": "regular", "/memfd:umbra memfd (deleted)": "memfd",
		"anon_inode:[eventfd]": "eventfd", "anon_inode:[eventpoll]": "eventpoll", "anon_inode:[timerfd]": "timerfd",
		"anon_inode:[signalfd]": "signalfd", "anon_inode:inotify": "inotify", "anon_inode:[pidfd]": "pidfd",
	}
	prefixes := map[string]string{"pipe:[": "pipe", "socket:[": "socket", "net:[": "namespace"}
	for _, f := range files {
		if f.Path == nil || f.Type == nil {
			continue
		}
		kind, known := want[*f.Path]
		for p, k := range prefixes {
			if strings.HasPrefix(*f.Path, p) {
				kind, known = k, true
			}
		}
		if known && kind != *f.Type {
			t.Errorf("%d/fd/%d: %s is a %s, expected %s", f.PID, f.FD, *f.Path, *f.Type, kind)
		}
		delete(want, *f.Path)
	}
	for p := range want {
		t.Errorf("no %q among the files", p)
	}
}

// TestFilesOfOne asks for one process, and for one whose descriptor table lies
// where there is no memory.
func TestFilesOfOne(t *testing.T) {
	g := lab.Shared(t, lab.Config{Kernel: "6.1", MemMB: 384})
	k := attach(t, g)
	tree := ask(t, g, "1", "fd,stat")
	files, err := Files(view(t, k, mem.Options{}), FileOptions{PID: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if target, ok := tree.Links["1/fd/"+strconv.Itoa(f.FD)]; f.PID != 1 || !ok || f.Path == nil || *f.Path != target {
			t.Errorf("%+v: the guest says %q", f, target)
		}
	}
	if len(files) != len(tree.Links) {
		t.Errorf("%d files, the guest says %d", len(files), len(tree.Links))
	}
	v := view(t, k, mem.Options{})
	r, err := newFileReader(v)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := r.tables([]Task{{Files: 0x1000}})
	if err != nil || tables[0x1000].err == nil || tables[0x1000].fds != nil {
		t.Errorf("table at no memory: %+v, %v", tables[0x1000], err)
	}
	var f File
	if err := v.Do(func(w *kernel.Walk) { f = r.file(w, 0x1000) }); err != nil {
		t.Fatal(err)
	}
	if f.Path != nil || f.Type != nil || f.Flags != nil || f.Pos != nil || len(f.Errors) == 0 {
		t.Errorf("file at no memory: %+v", f)
	}
}
