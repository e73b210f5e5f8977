package dump

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// ramSource is a machine in a test: memory at given places, some of it unreadable.
type ramSource struct {
	layout mem.Layout
	ram    map[mem.Phys][]byte // pages; absent ones are zeros
	bad    map[mem.Phys]bool   // pages that fault
	regs   []source.Registers
	before func(reads []mem.Read) error
	regErr error
}

func (r *ramSource) Info() source.Info { return source.Info{Layout: r.layout} }
func (r *ramSource) Close() error      { return nil }

func (r *ramSource) Registers(context.Context) ([]source.Registers, error) {
	return r.regs, r.regErr
}

func (r *ramSource) ReadPhys(_ context.Context, reads []mem.Read) error {
	if r.before != nil {
		if err := r.before(reads); err != nil {
			return err
		}
	}
	for i := range reads {
		q := &reads[i]
		q.N, q.Err = 0, nil
		clear(q.Buf)
		for q.N < len(q.Buf) {
			a := q.Addr + mem.Phys(q.N)
			if r.bad[a.Page()] {
				q.Err = &mem.Fault{Addr: uint64(a), Err: mem.ErrNotPresent}
				break
			}
			in := int(a - a.Page())
			n := min(mem.PageSize-in, len(q.Buf)-q.N)
			if p := r.ram[a.Page()]; p != nil {
				copy(q.Buf[q.N:q.N+n], p[in:])
			}
			q.N += n
		}
	}
	return nil
}

func newRAM(layout ...mem.Extent) *ramSource {
	return &ramSource{layout: layout, ram: map[mem.Phys][]byte{}, bad: map[mem.Phys]bool{}}
}

// readelf returns what readelf prints about a file, and fails when it warns.
func readelf(t *testing.T, path string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("readelf", "-lnW", path)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("readelf: %v %s\n%.2000s", err, stderr.String(), out)
	}
	if stderr.Len() > 0 {
		t.Errorf("readelf warns: %s", stderr.String())
	}
	return string(out)
}

func TestWriteRoundTrip(t *testing.T) {
	m := testMachine(t)
	from := open(t, m.file("elf"), Options{})
	regs, err := from.Registers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	info := []byte("OSRELEASE=6.1.0-test\nPAGESIZE=4096\n")
	for _, f := range []Format{ELF, LiME, Raw} {
		t.Run(string(f), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "out")
			var last, total uint64
			report, err := Write(context.Background(), path, from, f, WriteOptions{
				VMCoreInfo: info,
				KernelMap:  []Mapping{{Virt: 0xffffffff80000000, Phys: 0x100000, Size: 0x200000}},
				Progress: func(d, n uint64) {
					if d < last || d > n {
						t.Errorf("progress went from %d to %d of %d", last, d, n)
					}
					last, total = d, n
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			if want := from.Info().Layout; !slices.Equal(report.Layout, want) || report.Unreadable != 0 || last != want.Size() || total != last {
				t.Errorf("report = %+v, progress %d of %d", report, last, total)
			}
			opts := Options{}
			if f == Raw {
				opts.Layout = report.Layout
			}
			to := open(t, path, opts)
			if !slices.Equal(to.Info().Layout, from.Info().Layout) || to.Missing() != 0 {
				t.Errorf("info = %+v", to.Info())
			}
			if got := readAll(t, to, 0, machineRAM); !bytes.Equal(got, m.ram) {
				t.Errorf("RAM differs from %#x on", firstDifference(got, m.ram))
			}
			if !bytes.Equal(readAll(t, to, 0xfffc0000, 0x40000), readAll(t, from, 0xfffc0000, 0x40000)) {
				t.Error("ROM differs")
			}
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if st.Mode().Perm() != 0o600 {
				t.Errorf("mode = %v; memory is secret", st.Mode())
			}
			if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > st.Size()/4 {
				t.Errorf("%d bytes of %d are allocated, though nearly all is zeros", used, st.Size())
			}
			if f != ELF {
				return
			}
			if got, err := to.Registers(context.Background()); err != nil || !slices.Equal(got, regs) {
				t.Errorf("registers = %+v, %v; want %+v", got, err, regs)
			}
			if got := to.VMCoreInfo(); !bytes.Equal(got, info) {
				t.Errorf("VMCOREINFO = %q", got)
			}
			out := readelf(t, path)
			for _, want := range []string{
				"CORE (Core file)", "VMCOREINFO", "QEMU", "UMBRA",
				"0xffffffff80000000 0x0000000000100000 0x200000 0x200000",
				"0x00000000fffc0000 0x00000000fffc0000 0x040000 0x040000",
			} {
				if !strings.Contains(out, want) {
					t.Errorf("readelf does not show %q:\n%s", want, out)
				}
			}
		})
	}
}

// A dump's QEMU note must serve readers that know nothing of Umbra's.
func TestWriteQEMUNote(t *testing.T) {
	want := source.Registers{
		RIP: 1, RSP: 2, CR0: cr0PG | 1, CR3: 4, CR4: cr4PAE, EFER: eferLME | eferLMA,
		IDTBase: 0xfffffe0000000000, GSBase: 9, KernelGSBase: 10, CPL: 3,
	}
	if got, err := qemuRegisters(qemuNote(want), 0); err != nil || got != want {
		t.Errorf("registers = %+v, %v; want %+v", got, err, want)
	}
}

func TestWriteUnreadable(t *testing.T) {
	src := newRAM(mem.Extent{Start: 0, Size: 0x9f000}, mem.Extent{Start: 0x100000, Size: 4 << 20})
	data := testData()
	for a := mem.Phys(0x100000); a < 0x100000+4<<20; a += 0x4000 {
		src.ram[a] = data[:mem.PageSize]
	}
	for _, a := range []mem.Phys{0, 0x5000, 0x6000, 0x9e000, 0x200000, 0x2ff000} {
		src.bad[a] = true
	}
	for _, f := range []Format{ELF, LiME, Raw} {
		path := filepath.Join(t.TempDir(), "out")
		report, err := Write(context.Background(), path, src, f, WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if report.Unreadable != 6*mem.PageSize || !errors.Is(report.Fault, mem.ErrNotPresent) {
			t.Errorf("%s: unreadable = %#x, %v", f, report.Unreadable, report.Fault)
		}
		opts := Options{}
		if f == Raw {
			opts.Layout = report.Layout
		}
		s := open(t, path, opts)
		comparePages(t, src, s)
	}
}

// comparePages checks that both sources say the same of each page.
func comparePages(t *testing.T, want *ramSource, got mem.Reader) {
	t.Helper()
	for _, e := range want.layout {
		for a := e.Start; a < e.End(); a += mem.PageSize {
			x, y := make([]byte, mem.PageSize), make([]byte, mem.PageSize)
			_, err1 := mem.Gather(context.Background(), want, a, x)
			_, err2 := mem.Gather(context.Background(), got, a, y)
			if (err1 == nil) != (err2 == nil) || err1 == nil && !bytes.Equal(x, y) {
				t.Fatalf("page %v: %v and %v, equal %t", a, err1, err2, bytes.Equal(x, y))
			}
			if err2 != nil && !errors.Is(err2, mem.ErrNotRAM) {
				t.Fatalf("page %v: %v", a, err2)
			}
		}
	}
}

// More pieces than fit the room in front, and than the header's field can count.
func TestWriteManyPieces(t *testing.T) {
	for _, n := range []int{elfSpare * 2, phnumInSection + 10} {
		src := newRAM(mem.Extent{Start: 0, Size: uint64(n) * 2 * mem.PageSize})
		for i := range n {
			src.bad[mem.Phys(2*i*mem.PageSize)] = true
		}
		last := mem.Phys((2*n - 1) * mem.PageSize)
		src.ram[last] = testData()[:mem.PageSize]
		path := filepath.Join(t.TempDir(), "out")
		report, err := Write(context.Background(), path, src, ELF, WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(report.Layout) != n {
			t.Errorf("%d pieces, want %d", len(report.Layout), n)
		}
		s := open(t, path, Options{})
		if got := readAll(t, s, last, mem.PageSize); !bytes.Equal(got, src.ram[last]) {
			t.Error("the last piece differs")
		}
		if !slices.Equal(s.Info().Layout, mem.Layout(report.Layout)) {
			t.Errorf("the layout of %d pieces differs", n)
		}
		if out := readelf(t, path); strings.Count(out, "LOAD ") != n {
			t.Errorf("readelf counts %d segments, want %d", strings.Count(out, "LOAD "), n)
		}
	}
}

func TestWriteWithoutRegisters(t *testing.T) {
	src := newRAM(mem.Extent{Size: 0x2000})
	src.regErr = errors.New("the monitor is taken")
	path := filepath.Join(t.TempDir(), "out")
	report, err := Write(context.Background(), path, src, ELF, WriteOptions{VMCoreInfo: []byte("PAGESIZE=4096\n")})
	if err != nil || !errors.Is(report.NoRegisters, src.regErr) {
		t.Fatalf("report = %+v, %v", report, err)
	}
	s := open(t, path, Options{})
	if _, err := s.Registers(context.Background()); !errors.Is(err, ErrNoRegisters) || len(s.VMCoreInfo()) == 0 {
		t.Errorf("registers: %v, VMCOREINFO %q", err, s.VMCoreInfo())
	}
}

func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	src := newRAM(mem.Extent{Size: 0x2000})
	ctx := context.Background()
	path := filepath.Join(dir, "there")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(ctx, path, src, ELF, WriteOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file that exists: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file now holds %q", b)
	}
	if _, err := Write(ctx, filepath.Join(dir, "new"), src, Kdump, WriteOptions{}); err == nil {
		t.Error("kdump was written")
	}
	src.bad[0], src.bad[0x1000] = true, true
	if _, err := Write(ctx, filepath.Join(dir, "new"), src, ELF, WriteOptions{}); !errors.Is(err, mem.ErrNotPresent) {
		t.Errorf("nothing readable: %v", err)
	}
	src.bad[0] = false
	src.before = func([]mem.Read) error { return mem.ErrGone }
	if _, err := Write(ctx, filepath.Join(dir, "new"), src, ELF, WriteOptions{}); !errors.Is(err, mem.ErrGone) {
		t.Errorf("a machine that ends: %v", err)
	}
	onlyFile(t, dir, "there")
	src.before = nil
	if _, err := Write(ctx, path, src, ELF, WriteOptions{Replace: true}); err != nil {
		t.Fatal(err)
	}
	open(t, path, Options{Format: ELF})
	onlyFile(t, dir, "there")
}

// onlyFile fails when dir holds anything but the named files.
func onlyFile(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) {
			t.Errorf("%s is left over", e.Name())
		}
	}
}
