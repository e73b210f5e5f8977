package ksym

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/vmlinux"
	"github.com/umbravm/umbra/mem"
)

// link makes a program that is linked where kernels are.
func link(t testing.TB, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "vmlinux")
	args := append([]string{"-xc", "-O1", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-mcmodel=kernel", "-fno-asynchronous-unwind-tables",
		"-Wl,-Ttext-segment=0xffffffff81000000,-e,_text,--build-id=none", "-o", out, "-"}, flags...)
	cmd := exec.Command("gcc", args...)
	cmd.Stdin = strings.NewReader(`
		int init_task = 5, zeros[100];
		static int own = 7, own_zeros[3];
		const char linux_banner[] = "Linux version 0.0";
		__attribute__((weak)) int weak_data;
		__attribute__((weak)) int weak_code(void) { return 1; }
		__attribute__((noinline)) static int helper(int *p) { return *p + own; }
		int _text(void) { own_zeros[1] = helper(&init_task) + weak_code(); return own_zeros[init_task % 3] + own++; }
		asm(".globl absolute\nabsolute = 0x1234");
	`)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc %v: %v: %s", args, err, text)
	}
	return out
}

// TestFromVmlinux compares an ELF file's table with what nm prints of it.
func TestFromVmlinux(t *testing.T) {
	path := link(t)
	table, err := FromVmlinux(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := exec.Command("nm", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int)
	last := mem.Virt(0)
	for s := range table.All() {
		got[fmt.Sprintf("%016x %c %s", uint64(s.Addr), s.Type, s.Name)]++
		if s.Addr < last {
			t.Errorf("%s at %v comes after %v", s.Name, s.Addr, last)
		}
		last = s.Addr
	}
	n := 0
	for line := range strings.Lines(string(want)) {
		n++
		if line = strings.TrimSpace(line); got[line] == 0 {
			t.Errorf("nm has %q", line)
		}
	}
	if n != table.Len() || n < 12 {
		t.Errorf("%d symbols, nm has %d: %v", table.Len(), n, got)
	}
	slid, err := table.Slide(0x1000_0000)
	if err != nil {
		t.Fatal(err)
	}
	for name, move := range map[string]mem.Virt{"_text": 0x1000_0000, "init_task": 0x1000_0000, "absolute": 0} {
		a, ok := table.Lookup(name)
		b, ok2 := slid.Lookup(name)
		if !ok || !ok2 || b != a+move {
			t.Errorf("%s at %v, slid to %v", name, a, b)
		}
	}
}

// TestSlideDown moves the symbols of one boot to a lower address of the next.
func TestSlideDown(t *testing.T) {
	table, err := FromVmlinux(link(t))
	if err != nil {
		t.Fatal(err)
	}
	up, err := table.Slide(0x2000_0000)
	if err != nil {
		t.Fatal(err)
	}
	back, err := up.Slide(^uint64(0x2000_0000) + 1)
	if err != nil {
		t.Fatal(err)
	}
	for s := range table.All() {
		if a, ok := back.Lookup(s.Name); !ok || a != s.Addr {
			t.Errorf("%s at %v, moved up and down %v", s.Name, s.Addr, a)
		}
	}
	for _, by := range []uint64{0x7f00_0000, 1 << 62, 1 << 63, 1<<63 | 1<<48} {
		if s, err := table.Slide(by); err == nil {
			t.Errorf("moved by %#x without an error: %v", by, s)
		}
	}
}

func TestNoVmlinux(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("ffffffff81000000 T _text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("gcc", "-xc", "-o", program, "-")
	cmd.Stdin = strings.NewReader("int main(void) { return 0; }")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for path, want := range map[string]error{
		link(t, "-s"): ErrStripped,
		text:          vmlinux.ErrNotELF,
		text + "x":    os.ErrNotExist,
		program:       errNoSymbols, // none of its addresses is a kernel's
	} {
		if table, err := FromVmlinux(path); !errors.Is(err, want) || table != nil {
			t.Errorf("%s: %v, %v", path, table, err)
		}
	}
}

func FuzzVmlinux(f *testing.F) {
	data, err := os.ReadFile(link(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := vmlinux.New(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		table, err := fromELF(file)
		if (table == nil) == (err == nil) {
			t.Fatalf("%v, %v", table, err)
		}
		if err != nil {
			return
		}
		for s := range table.All() {
			if s.Name == "" || !isType(s.Type) {
				t.Fatalf("%+v", s)
			}
		}
		table.Lookup("init_task")
		table.Symbolize(0xffff_ffff_8100_0004)
	})
}
