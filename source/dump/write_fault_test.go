package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/mem"
)

// brokenDisk fails at its step'th operation and at all later ones, removal too.
type brokenDisk struct {
	diskFiles
	step int
	file *os.File
}

var errDisk = errors.New("the disk is broken")

func (d *brokenDisk) fails() bool { d.step--; return d.step < 0 }

func (d *brokenDisk) create(dir, pattern string) (target, error) {
	if d.fails() {
		return nil, errDisk
	}
	f, err := os.CreateTemp(dir, pattern)
	d.file = f
	return brokenFile{f, d}, err
}

func (d *brokenDisk) remove(name string) error {
	if d.fails() {
		return errDisk
	}
	return d.diskFiles.remove(name)
}

func (d *brokenDisk) publish(from, to string, replace bool) error {
	if d.fails() {
		return errDisk
	}
	return d.diskFiles.publish(from, to, replace)
}

type brokenFile struct {
	*os.File
	d *brokenDisk
}

func (f brokenFile) WriteAt(b []byte, off int64) (int, error) {
	if f.d.fails() {
		n, _ := f.File.WriteAt(b[:len(b)/2], off)
		return n, errDisk
	}
	return f.File.WriteAt(b, off)
}

func (f brokenFile) Truncate(size int64) error {
	if f.d.fails() {
		return errDisk
	}
	return f.File.Truncate(size)
}

func (f brokenFile) Sync() error {
	if f.d.fails() {
		return errDisk
	}
	return f.File.Sync()
}

func (f brokenFile) Close() error {
	err := f.File.Close()
	if f.d.fails() {
		return errDisk
	}
	return err
}

// Wherever the disk breaks, no file has the dump's name, and what cannot be
// removed does not open as a dump.
func TestWriteBrokenDisk(t *testing.T) {
	src := newRAM(mem.Extent{Size: 0x10000}, mem.Extent{Start: 0x20000, Size: 0x10000})
	src.ram[0x1000], src.ram[0x23000] = testData()[:mem.PageSize], testData()[:mem.PageSize]
	for _, f := range []Format{ELF, LiME, Raw} {
		for step := 0; ; step++ {
			dir := t.TempDir()
			path := filepath.Join(dir, "out")
			disk := &brokenDisk{step: step}
			_, err := write(context.Background(), disk, path, src, f, WriteOptions{})
			if err == nil {
				if step < 6 {
					t.Errorf("%s: only %d operations", f, step)
				}
				open(t, path, Options{Format: f, Layout: rawLayout(f, src)})
				break
			}
			if !errors.Is(err, errDisk) {
				t.Fatalf("%s, step %d: %v", f, step, err)
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s, step %d: the dump has its name: %v", f, step, err)
			}
			if disk.file == nil || f == Raw {
				continue
			}
			if !strings.Contains(err.Error(), "the unfinished file stays") {
				t.Errorf("%s, step %d: %v does not say that a file stays", f, step, err)
			}
			// From the step that completes the header on, the content is complete.
			s, err := Open(context.Background(), disk.file.Name(), Options{})
			if err == nil {
				comparePages(t, src, s)
				s.Close()
			}
		}
	}
}

func rawLayout(f Format, src *ramSource) []mem.Extent {
	if f == Raw {
		return src.layout
	}
	return nil
}

func TestWriteCancelled(t *testing.T) {
	for _, f := range []Format{ELF, LiME, Raw} {
		dir := t.TempDir()
		src := newRAM(mem.Extent{Size: 8 << 20})
		ctx, cancel := context.WithCancel(context.Background())
		n := 0
		src.before = func([]mem.Read) error {
			if n++; n == 4 {
				cancel()
			}
			return nil
		}
		_, err := Write(ctx, filepath.Join(dir, "out"), src, f, WriteOptions{})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", f, err)
		}
		if n != 4 {
			t.Errorf("%s: %d reads, want none after the fourth", f, n)
		}
		onlyFile(t, dir)
		cancel()
	}
}

const fullDiskEnv = "UMBRA_TEST_FULL_DISK"

// TestWriteFullDisk runs itself in a mount namespace of its own, with a tmpfs of
// 1 MiB in place of a directory.
func TestWriteFullDisk(t *testing.T) {
	if dir := os.Getenv(fullDiskEnv); dir != "" {
		writeToFullDisk(t, dir)
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestWriteFullDisk$", "-test.v")
	cmd.Env = append(os.Environ(), fullDiskEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "the disk was full") {
		t.Errorf("%v\n%s", err, out)
	}
}

func writeToFullDisk(t *testing.T, dir string) {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	src := newRAM(mem.Extent{Size: 4 << 20})
	page := testData()[:mem.PageSize]
	for a := mem.Phys(0); a < 4<<20; a += mem.PageSize {
		src.ram[a] = page
	}
	for _, f := range []Format{ELF, LiME, Raw} {
		_, err := Write(context.Background(), filepath.Join(dir, "out"), src, f, WriteOptions{})
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v", f, err)
		}
		onlyFile(t, dir)
	}
	fmt.Println("the disk was full")
}
