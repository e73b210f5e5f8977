package kernel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/replay"
)

// supplies are files of what a guest's kernel has in its memory, in the guest's own
// words.
type supplies struct {
	btf, systemMap, slidMap, vmlinux, stripped string
}

// supplied writes the files of a guest whose kernel is k.
func supplied(t *testing.T, g *lab.Guest, k *kernel.Kernel) supplies {
	t.Helper()
	ask := func(command string) []byte {
		b, err := g.Ask(context.Background(), command)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	types, kallsyms := ask("cat /sys/kernel/btf/vmlinux"), ask("cat /proc/kallsyms")
	linked := unslid(t, kallsyms, k.Slide())
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return supplies{
		btf: write("btf", types), slidMap: write("kallsyms", kallsyms), systemMap: write("System.map", linked),
		vmlinux:  write("vmlinux", vmlinuxOf(t, types, linked, k.Banner())),
		stripped: write("stripped", vmlinuxOf(t, types, nil, k.Banner())),
	}
}

// unslid takes the kernel's slide and the modules out of a /proc/kallsyms.
func unslid(t *testing.T, kallsyms []byte, slide uint64) []byte {
	t.Helper()
	var out bytes.Buffer
	for line := range bytes.Lines(kallsyms) {
		f := strings.Fields(string(line))
		if len(f) != 3 {
			continue
		}
		a, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		if a >= 1<<63 {
			a -= slide
		}
		fmt.Fprintf(&out, "%016x %s %s\n", a, f[1], f[2])
	}
	return out.Bytes()
}

// vmlinuxOf makes an ELF file of a kernel's types, symbols and banner.
func vmlinuxOf(t *testing.T, types, symbols []byte, banner string) []byte {
	t.Helper()
	le := binary.LittleEndian
	symtab, strtab, bannerAt := make([]byte, 24), []byte{0}, uint64(0)
	for line := range bytes.Lines(symbols) {
		var addr uint64
		var letter, name string
		if _, err := fmt.Sscanf(string(line), "%x %s %s", &addr, &letter, &name); err != nil {
			t.Fatal(err)
		}
		if addr < 1<<63 {
			continue // per-CPU and absolute ones
		}
		if name == "linux_banner" {
			bannerAt = addr
		}
		entry := make([]byte, 24)
		le.PutUint32(entry, uint32(len(strtab)))
		entry[4] = 1 << 4 // global, no type
		le.PutUint16(entry[6:], 1)
		le.PutUint64(entry[8:], addr)
		symtab, strtab = append(symtab, entry...), append(append(strtab, name...), 0)
	}
	const alloc = 2
	sections := []elfSection{
		{name: ".rodata", flags: alloc, addr: bannerAt, data: append([]byte(banner), '\n', 0)},
		{name: ".BTF", data: types},
		{name: ".symtab", data: symtab, link: 4},
		{name: ".strtab", data: strtab},
	}
	if symbols == nil {
		sections = sections[:2]
	}
	return elfOf(sections)
}

type elfSection struct {
	name  string
	flags uint64
	addr  uint64
	link  uint32
	data  []byte
}

func elfOf(sections []elfSection) []byte {
	le := binary.LittleEndian
	names := []byte{0}
	sections = append(slices.Clone(sections), elfSection{name: ".shstrtab"})
	for _, s := range sections {
		names = append(append(names, s.name...), 0)
	}
	sections[len(sections)-1].data = names
	out := make([]byte, 64)
	headers := make([]byte, 64)
	for _, s := range sections {
		h := make([]byte, 64)
		le.PutUint32(h, uint32(bytes.Index(names, append([]byte(s.name), 0))))
		le.PutUint32(h[4:], 1) // PROGBITS
		le.PutUint64(h[8:], s.flags)
		le.PutUint64(h[16:], s.addr)
		le.PutUint64(h[24:], uint64(len(out)))
		le.PutUint64(h[32:], uint64(len(s.data)))
		le.PutUint32(h[40:], s.link)
		headers, out = append(headers, h...), append(out, s.data...)
	}
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], 2)  // EXEC
	le.PutUint16(out[18:], 62) // X86_64
	le.PutUint64(out[40:], uint64(len(out)))
	le.PutUint16(out[58:], 64)
	le.PutUint16(out[60:], uint16(len(sections)+1))
	le.PutUint16(out[62:], uint16(len(sections)))
	return append(out, headers...)
}

func fill(t *testing.T, s kernel.Supply) kernel.Options {
	t.Helper()
	var opts kernel.Options
	if err := s.Fill(&opts); err != nil {
		t.Fatal(err)
	}
	return opts
}

// names attaches and returns what runs.
func names(src source.Source, opts kernel.Options) ([]string, *kernel.Kernel, error) {
	k, err := kernel.Attach(context.Background(), src, opts)
	if err != nil {
		return nil, nil, err
	}
	tasks, err := linux.Tasks(k.View(context.Background(), mem.Options{}), linux.TaskOptions{})
	var out []string
	for _, task := range tasks {
		out = append(out, fmt.Sprint(task.PID, task.Comm))
	}
	return out, k, err
}

// way is a way to supply something.
type way struct {
	name string
	kernel.Supply
	types, symbols bool // what it supplies
}

func (s supplies) ways() []way {
	return []way{
		{"BTF", kernel.Supply{BTF: s.btf}, true, false},
		{"System.map", kernel.Supply{SystemMap: s.systemMap}, false, true},
		{"kallsyms", kernel.Supply{SystemMap: s.slidMap}, false, true},
		{"vmlinux", kernel.Supply{Vmlinux: s.vmlinux}, true, true},
		{"stripped vmlinux", kernel.Supply{Vmlinux: s.stripped}, true, false},
		{"stripped vmlinux, System.map", kernel.Supply{Vmlinux: s.stripped, SystemMap: s.systemMap}, true, true},
		{"all", kernel.Supply{Vmlinux: s.vmlinux, BTF: s.btf, SystemMap: s.systemMap}, true, true},
	}
}

// recorded is a paused machine's memory, as attaching to it and listing its tasks in
// every way reads it.
type recorded struct {
	bundle    *mem.Bundle
	supplies  supplies
	tasks     []string
	btf, syms []mem.Phys // the pages in which they lie
}

func record(t *testing.T) *recorded {
	t.Helper()
	g := lab.Shared(t, lab.Config{Kernel: "6.1", MemMB: 256, QMP: true, Append: []string{"umbra.state=0"}})
	src := open(t, g)
	first, err := kernel.Attach(context.Background(), src, kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	out := &recorded{supplies: supplied(t, g, first)}
	if err := g.Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer g.Resume(context.Background())
	r := replay.Record(src, []string{"ps"})
	var k *kernel.Kernel
	if out.tasks, k, err = names(r, kernel.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, way := range out.supplies.ways() {
		got, _, err := names(r, fill(t, way.Supply))
		if err != nil || !slices.Equal(got, out.tasks) {
			t.Errorf("%s: %v, %v; without it %v", way.name, got, err, out.tasks)
		}
	}
	pages := func(from, to mem.Virt) (out []mem.Phys) {
		sp := k.View(context.Background(), mem.Options{}).Space()
		for a := from.Page(); a < to; a += mem.PageSize {
			p, err := sp.Translate(a)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, p)
		}
		return out
	}
	symbol := func(name string) mem.Virt {
		a, err := k.Symbol(name)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	out.btf = pages(symbol("__start_BTF"), symbol("__stop_BTF"))
	at := k.Symbols().Locations()
	out.syms = pages(at.Names, at.Names+64<<10)
	if out.bundle, err = r.Bundle(); err != nil {
		t.Fatal(err)
	}
	return out
}

// without returns the machine without some pages: not recorded, or full of zeros.
func (r *recorded) without(t *testing.T, zero bool, pages ...mem.Phys) source.Source {
	t.Helper()
	b := &mem.Bundle{Meta: r.bundle.Meta, Pages: maps.Clone(r.bundle.Pages)}
	for _, p := range pages {
		if _, ok := b.Pages[p]; !ok {
			t.Fatalf("page %v was not read", p)
		}
		delete(b.Pages, p)
		if zero {
			b.Pages[p] = mem.BundlePage{Data: make([]byte, mem.PageSize)}
		}
	}
	src, err := replay.New(b)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// TestMissing attaches to a machine whose kernel lacks types or symbols. The error
// says which and what supplies them, and what it says works.
func TestMissing(t *testing.T) {
	r := record(t)
	for name, c := range map[string]struct {
		pages          []mem.Phys
		types, symbols bool // what then is missing
	}{
		"BTF":      {r.btf, true, false},
		"its head": {r.btf[:1], true, false},
		"kallsyms": {r.syms, false, true},
		"both":     {slices.Concat(r.btf, r.syms), true, true},
	} {
		what, flags := "BTF", []string{"--btf", "--vmlinux"}
		if c.symbols {
			what, flags = "kallsyms", []string{"--system-map", "--vmlinux"}
		}
		for _, zero := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, zero %v", name, zero), func(t *testing.T) {
				src := r.without(t, zero, c.pages...)
				_, _, err := names(src, kernel.Options{})
				var missing *kernel.MissingError
				if !errors.As(err, &missing) || missing.What != what {
					t.Fatalf("%v", err)
				}
				for _, flag := range flags {
					if !strings.Contains(missing.HintLine(), flag) {
						t.Errorf("the hint is %q", missing.HintLine())
					}
				}
				for _, way := range r.supplies.ways() {
					helps := (way.types || !c.types) && (way.symbols || !c.symbols)
					got, _, err := names(src, fill(t, way.Supply))
					if helps != (err == nil) || helps && !slices.Equal(got, r.tasks) {
						t.Errorf("%s: %v, %v", way.name, got, err)
					}
				}
			})
		}
	}
}

// TestWrongKernel supplies what belongs to another kernel.
func TestWrongKernel(t *testing.T) {
	config := func(version string) lab.Config {
		return lab.Config{Kernel: version, MemMB: 256, QMP: true, Append: []string{"umbra.state=0"}}
	}
	attach := func(g *lab.Guest) (source.Source, *kernel.Kernel) {
		src := open(t, g)
		k, err := kernel.Attach(context.Background(), src, kernel.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return src, k
	}
	g, other := lab.Shared(t, config("6.1")), lab.Shared(t, config("6.12"))
	src, k := attach(g)
	_, otherKernel := attach(other)
	own, wrong := supplied(t, g, k), supplied(t, other, otherKernel)
	for _, way := range wrong.ways() {
		k, err := kernel.Attach(context.Background(), src, fill(t, way.Supply))
		if !errors.Is(err, kernel.ErrWrongKernel) || k != nil {
			t.Errorf("%s of another kernel: %v, %v", way.name, k, err)
		}
	}
	// The symbols fit, and the file says that it is of another build.
	linked, err := os.ReadFile(own.systemMap)
	if err != nil {
		t.Fatal(err)
	}
	types, err := os.ReadFile(own.btf)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(path, vmlinuxOf(t, types, linked, "Linux version 6.1.0-rebuilt"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = kernel.Attach(context.Background(), src, fill(t, kernel.Supply{Vmlinux: path}))
	if !errors.Is(err, kernel.ErrWrongKernel) || !strings.Contains(err.Error(), "6.1.0-rebuilt") {
		t.Errorf("another build: %v", err)
	}
}

// TestSupplyErrors names files that are not what they should be.
func TestSupplyErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	text := write("text", []byte(strings.Repeat("not at all a kernel\n", 10)))
	empty := write("empty", elfOf(nil))
	stub := write("stub", []byte("ffffffffffffffff B The real System.map is in the linux-image-dbg package\n"))
	none := filepath.Join(dir, "none")
	for name, c := range map[string]struct {
		s    kernel.Supply
		want string
	}{
		"no vmlinux":         {kernel.Supply{Vmlinux: none}, "no such file"},
		"no BTF":             {kernel.Supply{BTF: none}, "no such file"},
		"no System.map":      {kernel.Supply{SystemMap: none}, "no such file"},
		"text as vmlinux":    {kernel.Supply{Vmlinux: text}, "not an ELF file"},
		"text as BTF":        {kernel.Supply{BTF: text}, "malformed BTF"},
		"text as System.map": {kernel.Supply{SystemMap: text}, "line 1"},
		"Debian's stub":      {kernel.Supply{SystemMap: stub}, "line 1"},
		"an empty vmlinux":   {kernel.Supply{Vmlinux: empty}, "neither BTF nor DWARF"},
		"a directory":        {kernel.Supply{Vmlinux: dir}, "not a regular file"},
	} {
		var opts kernel.Options
		err := c.s.Fill(&opts)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if opts.Types != nil || opts.Symbols != nil {
			t.Errorf("%s: options were filled: %+v", name, opts)
		}
	}
	var opts kernel.Options
	if err := (kernel.Supply{}).Fill(&opts); err != nil || opts.Types != nil || opts.Symbols != nil {
		t.Errorf("nothing supplied: %v", err)
	}
}
