package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
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

func TestTruncatedCore(t *testing.T) {
	m := testMachine(t)
	whole, err := os.ReadFile(m.file("elf"))
	if err != nil {
		t.Fatal(err)
	}
	// A few bytes of section names follow memory.
	runs := open(t, m.file("elf"), Options{}).image.(*segments).runs
	whole = whole[:runs[len(runs)-1].off+runs[len(runs)-1].size]
	for _, cut := range []int{1, 0x40000, 0x40001, 8 << 20} {
		s := open(t, writeFile(t, whole[:len(whole)-cut]), Options{})
		if s.Missing() != uint64(cut) || !strings.Contains(s.Info().Detail, "truncated") {
			t.Errorf("without its last %#x bytes: missing %#x, %q", cut, s.Missing(), s.Info().Detail)
		}
		if faults := checkNothingInvented(t, s, m.ram); (faults > 0) != (cut > 0x40000) {
			t.Errorf("without its last %#x bytes: %d faults in RAM", cut, faults)
		}
		if e, ok := s.Data(0xfffff000); !ok || e.End() != 1<<32 {
			t.Errorf("without its last %#x bytes: data = %v, %v; what is missing is not zeros", cut, e, ok)
		}
	}
	for _, size := range []int{40, 63, 64, 100, 500} {
		s, err := Open(context.Background(), writeFile(t, whole[:size]), Options{})
		if err == nil || !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrFormat) {
			t.Errorf("the first %d bytes: %v, %v", size, s, err)
		}
	}
}

// buildCore makes a core of the given segments, of either class.
func buildCore(wide bool, programs []program, body []byte) []byte {
	le := binary.LittleEndian
	var b []byte
	if wide {
		b = encodeELFHeader(elfHeaderSize, 0, len(programs))
		return append(append(b, encodePrograms(programs)...), body...)
	}
	b = make([]byte, 52)
	copy(b, elfMagic)
	b[4], b[5], b[6] = elfClass32, elfLSB, 1
	le.PutUint16(b[16:], elfCore)
	le.PutUint16(b[18:], machine386)
	le.PutUint32(b[28:], 52)
	le.PutUint16(b[42:], 32)
	le.PutUint16(b[44:], uint16(len(programs)))
	for _, p := range programs {
		for _, v := range []uint64{uint64(p.typ), p.offset, p.vaddr, p.paddr, p.filesz, p.memsz, 7, 0} {
			b = le.AppendUint32(b, uint32(v))
		}
	}
	return append(b, body...)
}

func TestCoreSegments(t *testing.T) {
	data := testData()
	for _, wide := range []bool{true, false} {
		head := uint64(len(buildCore(wide, make([]program, 4), nil)))
		seg := func(off, addr, filesz, memsz uint64) program {
			return program{typ: ptLoad, offset: head + off, paddr: addr, filesz: filesz, memsz: memsz}
		}
		b := buildCore(wide, []program{
			seg(0, 0x10000, 0x3000, 0x3000),
			seg(0x1000, 0x11000, 0x3000, 0x3000), // the same memory from its second page on, and a page more
			seg(0x1000, 0x11000, 0x1000, 0x1000),
			seg(0x4000, 0x20000, 0x1000, 0x3000), // two pages left out
		}, data[:0x5000])
		s := open(t, writeFile(t, b), Options{})
		if got, want := s.Info().Layout, (mem.Layout{{Start: 0x10000, Size: 0x4000}, {Start: 0x20000, Size: 0x3000}}); !slices.Equal(got, want) {
			t.Errorf("layout = %v, want %v", got, want)
		}
		if got := readAll(t, s, 0x10000, 0x4000); !bytes.Equal(got, data[:0x4000]) {
			t.Error("overlapping segments read wrong")
		}
		n, err := mem.Gather(context.Background(), s, 0x20000, make([]byte, 0x2000))
		if n != 0x1000 || !errors.Is(err, mem.ErrNotRecorded) {
			t.Errorf("read of what was left out = %d, %v", n, err)
		}
		if e, ok := s.Data(0x21000); !ok || e != (mem.Extent{Start: 0x21000, Size: 0x2000}) {
			t.Errorf("data = %v, %v; what was left out is not zeros", e, ok)
		}
	}
}

func TestCoreErrors(t *testing.T) {
	le := binary.LittleEndian
	note := func(b []byte) []byte {
		head := buildCore(true, make([]program, 2), nil)
		n := uint64(len(head))
		return buildCore(true, []program{
			{typ: ptNote, offset: n, filesz: uint64(len(b)), memsz: uint64(len(b))},
			{typ: ptLoad, offset: n, filesz: 1, memsz: 1},
		}, append(b, 0))
	}
	short := qemuNote(source.Registers{})
	le.PutUint32(short[qemuSize:], 4096)
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"no memory": {buildCore(true, []program{{typ: ptNote}}, nil), "without any memory"},
		"wrap":      {buildCore(true, []program{{typ: ptLoad, paddr: ^uint64(0) - 10, filesz: 100}}, nil), "cannot have 0x64 bytes"},
		"offset":    {buildCore(true, []program{{typ: ptLoad, offset: 1 << 63, filesz: 100}}, nil), "lies at offset"},
		"process": {buildCore(true, []program{
			{typ: ptLoad, offset: 0, vaddr: 0x400000, filesz: 10},
			{typ: ptLoad, offset: 10, vaddr: 0x600000, filesz: 10},
		}, nil), "core of a process"},
		"big endian":      {append([]byte("\x7fELF\x02\x02\x01"), make([]byte, 60)...), "byte order 2"},
		"note too long":   {note(appendNote(nil, "QEMU", 0, make([]byte, 64))[:40]), "does not fit"},
		"note too short":  {note(appendNote(nil, "QEMU", 0, make([]byte, 64))), "has 64 bytes"},
		"note's size":     {note(appendNote(nil, "QEMU", 0, short)), "says 4096 bytes"},
		"own note":        {note(appendNote(nil, "UMBRA", 1, make([]byte, 64))), "want 88"},
		"note header cut": {note([]byte{1, 2, 3}), "header is cut off"},
		"notes too large": {buildCore(true, []program{{typ: ptNote, filesz: 1 << 40}}, nil), "at most"},
	} {
		_, err := Open(context.Background(), writeFile(t, c.file), Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
