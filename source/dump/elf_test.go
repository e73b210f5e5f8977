package dump

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

func TestQEMUCores(t *testing.T) {
	m := testMachine(t)
	low := mem.Extent{Start: 0, Size: machineRAM}
	rom := mem.Extent{Start: 0xfffc0000, Size: 0x40000}
	for _, c := range []struct {
		name   string
		layout mem.Layout
	}{
		{"elf", mem.Layout{low, rom}},
		// The page tables of the boot sector name no ROM.
		{"paging", mem.Layout{low}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, m.file(c.name), Options{})
			info := s.Info()
			if info.Kind != "dump" || info.Name != c.name || !info.Local || info.Live || info.CPUs != 2 {
				t.Errorf("info = %+v", info)
			}
			if !slices.Equal(info.Layout, c.layout) {
				t.Errorf("layout = %v, want %v", info.Layout, c.layout)
			}
			checkMachine(t, s, m)
		})
	}
}

// checkMachine compares a dump of m with what QEMU says of m.
func checkMachine(t *testing.T, s *Source, m *machine) {
	t.Helper()
	if got := readAll(t, s, 0, machineRAM); !bytes.Equal(got, m.ram) {
		t.Errorf("RAM differs from pmemsave's from %#x on", firstDifference(got, m.ram))
	}
	if got := readAll(t, s, dataAddr, len(m.data)); !bytes.Equal(got, m.data) {
		t.Error("the loaded data differs")
	}
	regs, err := s.Registers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(regs) != 2 {
		t.Fatalf("registers of %d CPUs, want 2", len(regs))
	}
	want := source.Registers{
		RIP: monitorRegister(t, m, "RIP"), RSP: monitorRegister(t, m, "RSP"),
		CR0: monitorRegister(t, m, "CR0"), CR3: monitorRegister(t, m, "CR3"), CR4: monitorRegister(t, m, "CR4"),
		EFER: monitorRegister(t, m, "EFER"),
		// The monitor prints the rest of these lines; boot.S has set them.
		IDTBase: 0xfffffe0000000000, GSBase: 0xffff888012345000, KernelGSBase: 0x7f0000abc000,
	}
	if regs[0] != want {
		t.Errorf("CPU 0 = %+v, want %+v", regs[0], want)
	}
	if r := regs[1]; r.CPU != 1 || r.EFER != 0 || r.CR0 != 0x11 {
		t.Errorf("CPU 1, which waits in protected mode = %+v", r)
	}
	if st := s.Statuses(); len(st) != 2 || st[0].RIP != want.RIP || st[0].RSP != want.RSP {
		t.Errorf("statuses = %+v", st)
	}
}

// monitorRegister takes a register of CPU 0 out of "info registers -a".
func monitorRegister(t *testing.T, m *machine, name string) uint64 {
	t.Helper()
	match := regexp.MustCompile(`\b` + name + `=([0-9a-f]+)`).FindStringSubmatch(m.registers)
	if match == nil {
		t.Fatalf("the monitor shows no %s:\n%s", name, m.registers)
	}
	v, err := strconv.ParseUint(match[1], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func TestReadOutsideRAM(t *testing.T) {
	m := testMachine(t)
	s := open(t, m.file("elf"), Options{})
	buf := make([]byte, 64)
	for _, c := range []struct {
		addr mem.Phys
		n    int
	}{{machineRAM, 0}, {machineRAM - 10, 10}, {0xffffffc0 + 10, 54}, {^mem.Phys(0) - 3, 0}} {
		n, err := mem.Gather(context.Background(), s, c.addr, buf)
		var fault *mem.Fault
		if n != c.n || !errors.Is(err, mem.ErrNotRAM) || !errors.As(err, &fault) || fault.Addr != uint64(c.addr)+uint64(n) {
			t.Errorf("read %v = %d, %v; want %d and a fault behind it", c.addr, n, err, c.n)
		}
	}
}
