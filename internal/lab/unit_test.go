package lab

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// readCPIO is an independent reader of "newc" archives.
func readCPIO(b []byte) (map[string]string, error) {
	members := map[string]string{}
	for {
		if len(b) < 110 || string(b[:6]) != "070701" {
			return nil, errors.New("no header")
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return -1
			}
			return int(n)
		}
		mode, size, nameLen := field(1), field(6), field(11)
		data := (110 + nameLen + 3) &^ 3
		name := string(b[110 : 110+nameLen-1])
		if name == "TRAILER!!!" {
			return members, nil
		}
		members[name] = fmt.Sprintf("%o %d:%d %s", mode, field(9), field(10), b[data:data+size])
		b = b[(data+size+3)&^3:]
	}
}

func TestCPIO(t *testing.T) {
	var b bytes.Buffer
	c := newCPIO(&b)
	c.Dir("dev", 0o755)
	c.Char("dev/console", 0o600, 5, 1)
	c.File("init", 0o755, []byte("12345"))
	c.File("four", 0o644, []byte("1234"))
	c.File("empty", 0o400, nil)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := readCPIO(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"dev": "40755 0:0 ", "dev/console": "20600 5:1 ", "init": "100755 0:0 12345",
		"four": "100644 0:0 1234", "empty": "100400 0:0 ",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

type brokenWriter struct{ left int }

func (w *brokenWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

func TestCPIOWriteError(t *testing.T) {
	c := newCPIO(&brokenWriter{left: 150})
	c.File("init", 0o755, make([]byte, 100))
	if err := c.Close(); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a write that failed: %v", err)
	}
}

func TestArgs(t *testing.T) {
	f := files{ram: "/ram", image: "/k", initrd: "/i", oracle: "/o", control: "/c", qmp: "/q"}
	for _, c := range []struct {
		name  string
		cfg   Config
		accel string
		want  []string
		not   []string
	}{
		{"default", Config{}, "tcg", []string{"-cpu max,cx16=off", "mem-path=/ram", "-machine q35,memory-backend=ram0", "name=umbra.oracle"}, []string{"/q", "-numa"}},
		{"kvm", Config{CPUModel: "max,la57=off", QMP: true}, "kvm", []string{"-cpu max,la57=off ", "path=/q"}, []string{"cx16"}},
		{"own cx16", Config{CPUModel: "max,cx16=on"}, "tcg", []string{"-cpu max,cx16=on "}, []string{"cx16=off"}},
		{"stock", Config{RAM: RAMStock, Machine: "pc"}, "tcg", []string{"-machine pc "}, []string{"memory-backend"}},
		{"memfd", Config{RAM: RAMMemfd}, "tcg", []string{"memory-backend-memfd,id=ram0,size=512M,share=on"}, []string{"mem-path"}},
		{"numa", Config{NUMA: 3, CPUs: 4, MemMB: 400}, "tcg", []string{
			"size=133M,share=on,mem-path=/ram ", "size=133M,share=on,mem-path=/ram.1 ", "size=134M,share=on,mem-path=/ram.2 ",
			"nodeid=0,memdev=ram0,cpus=0,cpus=3 ", "nodeid=2,memdev=ram2,cpus=2 "}, nil},
		{"serial", Config{Serial: true}, "tcg", []string{"-serial chardev:oracle", "umbra.oracle=ttyS1"}, []string{"virtio"}},
		{"no oracle", Config{NoOracle: true}, "tcg", []string{"umbra.oracle=none"}, []string{"/o "}},
		{"extra", Config{ExtraArgs: []string{"-s"}, Append: []string{"nokaslr"}}, "tcg", []string{" -s ", " nokaslr "}, nil},
	} {
		got := strings.Join(c.cfg.withDefaults().args(c.accel, f), " ") + " "
		for _, w := range c.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: no %q in %s", c.name, w, got)
			}
		}
		for _, n := range c.not {
			if strings.Contains(got, n) {
				t.Errorf("%s: %q in %s", c.name, n, got)
			}
		}
	}
}

func TestConsoleMarkers(t *testing.T) {
	c := newConsole()
	is := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	// Split between writes.
	for _, s := range []string{"booting\numbra-l", "ab: rea"} {
		fmt.Fprint(c, s)
		if ready, failed := c.signals(); is(ready) || is(failed) {
			t.Fatalf("a marker too early, after %q", s)
		}
	}
	fmt.Fprint(c, "dy\n")
	if ready, failed := c.signals(); !is(ready) || is(failed) {
		t.Error("the marker was missed")
	}
	c.restart()
	fmt.Fprint(c, "again\n")
	if ready, _ := c.signals(); is(ready) {
		t.Error("the last boot's marker was taken for this one's")
	}
	for range 100 {
		fmt.Fprint(c, strings.Repeat("x", 50000))
	}
	fmt.Fprint(c, "Kernel panic - not syncing: x")
	if _, failed := c.signals(); !is(failed) {
		t.Error("the panic was missed")
	}
	if n := len(c.String()); n > 2*consoleMax+50000 {
		t.Errorf("%d bytes are kept", n)
	}
}

// TestCachedOnce lets many callers want the same directory.
func TestCachedOnce(t *testing.T) {
	t.Setenv("UMBRA_LAB_CACHE", t.TempDir())
	var fills atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := cached(context.Background(), "thing", func(dir string) error {
				fills.Add(1)
				return os.WriteFile(filepath.Join(dir, "file"), []byte("whole"), 0o644)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "whole" {
				t.Errorf("seen %q, %v", b, err)
			}
		})
	}
	wg.Wait()
	if n := fills.Load(); n != 1 {
		t.Errorf("filled %d times", n)
	}
	want := errors.New("no luck")
	if _, err := cached(context.Background(), "other", func(string) error { return want }); !errors.Is(err, want) {
		t.Errorf("a failed fill: %v", err)
	}
	if dir := filepath.Join(os.Getenv("UMBRA_LAB_CACHE"), "other"); exists(dir) {
		t.Error("a failed fill left its directory")
	}
}

func TestSweep(t *testing.T) {
	parent := t.TempDir()
	held, lock, err := newDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	dead, lock2, err := newDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	lock2.Close()
	fresh, lock3, err := newDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	lock3.Close()
	other := filepath.Join(parent, "umbra-lab-notours")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for _, d := range []string{held, dead, other} {
		if err := os.Chtimes(d, old, old); err != nil {
			t.Fatal(err)
		}
	}
	sweep(parent)
	for d, want := range map[string]bool{held: true, dead: false, fresh: true, other: true} {
		if exists(d) != want {
			t.Errorf("%s exists: %v, want %v", filepath.Base(d), !want, want)
		}
	}
}

// TestOracleAfterTimeout checks that a late answer is not taken for another's.
func TestOracleAfterTimeout(t *testing.T) {
	host, guest := net.Pipe()
	defer guest.Close()
	o := newOracle(host)
	asked := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(guest).ReadString('\n')
		asked <- line
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := o.ask(ctx, "cat /a"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	if line := <-asked; line != "cat /a\n" {
		t.Errorf("the guest was asked %q", line)
	}
	if _, err := o.ask(context.Background(), "cat /b"); err == nil {
		t.Error("a broken channel still takes commands")
	}
	if _, err := o.ask(context.Background(), "cat /a\nquit"); err == nil {
		t.Error("two lines were taken for one command")
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte("ok raw 3\nabc"))
	f.Add([]byte("err raw 0\n"))
	f.Add([]byte("ok gzip 20\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("ok raw 99999999999999999999\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, body, err := readAnswer(bufio.NewReader(bytes.NewReader(b)))
		if err != nil && body != nil {
			t.Errorf("both an error and a value: %v, %q", err, body)
		}
		if len(body) > answerMax {
			t.Errorf("%d bytes", len(body))
		}
	})
}

func FuzzParseProc(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "1/comm", Size: 5})
	w.Write([]byte("init\n"))
	w.WriteHeader(&tar.Header{Name: "1/exe", Typeflag: tar.TypeSymlink, Linkname: "/init"})
	w.WriteHeader(&tar.Header{Name: "2/exe", PAXRecords: map[string]string{"UMBRA.error": "no such file"}})
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, err := parseProc(b)
		if (tree == nil) == (err == nil) {
			t.Errorf("not exactly one of value and error: %v, %v", tree, err)
		}
		if tree != nil && !slices.IsSorted(tree.PIDs()) {
			t.Error("process ids out of order")
		}
	})
}
