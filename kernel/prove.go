package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/ksym"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/paging"
)

// prove loads a candidate's symbols and types and shows that they belong to the
// kernel mapped there: the banner is where the symbols say, the first task is the
// idle task, the kernel's own page tables map the very image, and the processor
// delivers page faults to the kernel's handler.
func (f *finder) prove(c candidate, opts Options) (*Kernel, error) {
	k := &Kernel{src: f.src, image: c.image, levels: c.levels, layouts: make(map[reflect.Type]any)}
	k.attach.Method = c.method
	var err error
	k.ownSyms = opts.Symbols == nil
	if k.syms, err = symbols(c.image, opts); err != nil {
		return nil, err
	}
	if err := k.proveSymbols(f, c); err != nil {
		return nil, suppliedSymbols(opts, err)
	}
	if err := k.proveBanner(opts); err != nil {
		return nil, err
	}
	if k.types, err = k.loadTypes(opts); err != nil {
		return nil, err
	}
	if err := k.proveTask(f.ctx); err != nil {
		return nil, suppliedTypes(opts, err)
	}
	if opts.Types != nil {
		if err := k.proveSuppliedTypes(f.ctx); err != nil {
			return nil, suppliedTypes(opts, err)
		}
	}
	if k.boot, err = k.identity(f.ctx); err != nil {
		return nil, err
	}
	k.ahead(f.ctx)
	k.attach.Read = c.image.read + uint64(f.snap.Stats().Pages)*mem.PageSize
	return k, nil
}

// proveSymbols shows that the symbols belong to the image they were looked for in.
func (k *Kernel) proveSymbols(f *finder, c candidate) (err error) {
	if k.banner, err = k.readBanner(); err != nil {
		return err
	}
	if k.root, err = k.ownTables(f.snap); err != nil {
		return err
	}
	if c.handler != 0 && !k.handlesFaultsAt(c.handler) {
		return fmt.Errorf("the processor's page fault handler %v is none of this kernel's", c.handler)
	}
	return nil
}

func symbols(im *image, opts Options) (*ksym.Table, error) {
	if opts.Symbols != nil {
		return slide(opts.Symbols, im)
	}
	t, err := ksym.Find(im)
	if err != nil {
		return nil, &MissingError{What: "kallsyms", Flag: "--system-map FILE or --vmlinux FILE", Err: err}
	}
	return t, nil
}

// MissingError is something a kernel does not carry in its memory, and the flag
// that supplies it.
type MissingError struct {
	What string // "kallsyms", "BTF"
	Flag string
	Err  error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("no %s in the kernel's memory: %v", e.What, e.Err)
}
func (e *MissingError) Unwrap() error { return e.Err }

// HintLine says what helps.
func (e *MissingError) HintLine() string { return "supply it with " + e.Flag }

// readBanner returns linux_banner (init/version.c).
func (k *Kernel) readBanner() (string, error) {
	a, err := k.Symbol("linux_banner")
	if err != nil {
		return "", err
	}
	buf := make([]byte, maxBanner)
	if err := k.image.Read(a, buf); err != nil {
		return "", fmt.Errorf("linux_banner: %w", err)
	}
	banner, ok := parseBanner(buf)
	if !ok {
		return "", fmt.Errorf("linux_banner at %v does not hold a banner", a)
	}
	return banner, nil
}

// ownTables returns the kernel's top page table, having checked that it maps the
// image to where the image was found.
func (k *Kernel) ownTables(snap *mem.Snapshot) (mem.Phys, error) {
	pgd, err := k.Symbol("init_top_pgt")
	if err != nil {
		return 0, err
	}
	root := k.image.phys(pgd)
	sp := paging.NewCached(snap, root, k.levels)
	for _, r := range k.image.runs {
		p, err := sp.Translate(r.Virt)
		if err != nil {
			return 0, fmt.Errorf("init_top_pgt: %w", err)
		}
		if p != r.Phys {
			return 0, fmt.Errorf("init_top_pgt maps %v to %v, not %v", r.Virt, p, r.Phys)
		}
	}
	if err := k.directMap(sp); err != nil {
		return 0, err
	}
	k.tables = sp.Tables()
	slices.Sort(k.tables)
	return root, nil
}

// maxDirectSteps bounds the pages of the direct map looked at, of 2 MiB or 1 GiB each.
const maxDirectSteps = 1 << 14

// maxAhead bounds the tables that every view begins with: a direct map in small pages
// has as many as the machine has times 2 MiB.
const maxAhead = 512

// directMap walks the tables through which the kernel sees all of RAM, in steps of
// 2 MiB, so that views need not find them again one level at a time
// (page_offset_base, arch/x86/mm/kaslr.c; without memory KASLR a constant).
func (k *Kernel) directMap(sp *paging.Space) error {
	base := mem.Virt(0xffff_8880_0000_0000)
	if k.levels == 5 {
		base = 0xff11_0000_0000_0000
	}
	if a, ok := k.syms.Lookup("page_offset_base"); ok {
		var b [8]byte
		if err := k.image.Read(a, b[:]); err != nil {
			return fmt.Errorf("page_offset_base: %w", err)
		}
		base = mem.Virt(binary.LittleEndian.Uint64(b[:]))
	}
	steps := 0
	for _, e := range k.src.Info().Layout {
		for p := e.Start; p < e.End() && steps < maxDirectSteps && sp.NumTables() < maxAhead; steps++ {
			_, size, err := sp.Walk(base + mem.Virt(p))
			if err != nil || size < 2<<20 { // a hole, or split into small pages
				size = 2 << 20
			}
			p = (p &^ mem.Phys(size-1)) + mem.Phys(size)
		}
	}
	return nil
}

// handlesFaultsAt tells whether a is an entry point for page faults: asm_exc_page_fault
// since 5.8, or that of a hypervisor's asynchronous faults or of FRED.
func (k *Kernel) handlesFaultsAt(a mem.Virt) bool {
	s, off, ok := k.syms.Symbolize(a)
	return ok && off == 0 && strings.Contains(s.Name, "page_fault")
}

type taskProof struct {
	Comm btf.Field `btf:"task_struct.comm"`
	PID  btf.Field `btf:"task_struct.pid"`
}

// proveTask shows that init_task, read through the kernel's page tables with the
// kernel's types, is the idle task of the boot CPU (init/init_task.c).
func (k *Kernel) proveTask(ctx context.Context) error {
	task, err := k.Symbol("init_task")
	if err != nil {
		return err
	}
	l, err := Layout[taskProof](k)
	if err != nil {
		return err
	}
	v := k.View(ctx, mem.Options{})
	return v.Do(func(w *Walk) {
		pid, comm := w.Uint(task, l.PID), w.Text(task, l.Comm)
		if w.OK() && (pid != 0 || !strings.HasPrefix(comm, "swapper")) {
			w.Failf("init_task at %v is %q with pid %d, not the idle task", task, comm, pid)
		}
	})
}

type aheadLayout struct {
	PIDs btf.Field `btf:"pid_namespace.idr.idr_rt.xa_head"`
}

// ahead finds pages that nearly every view needs before it can go on, so that they
// come with the first round: the root of the PID IDR. It is a hint; views read anew.
func (k *Kernel) ahead(ctx context.Context) {
	l, err := Layout[aheadLayout](k)
	if err != nil {
		return
	}
	ns, err := k.Symbol("init_pid_ns")
	if err != nil {
		return
	}
	v := k.View(ctx, mem.Options{Static: true})
	_ = v.Do(func(w *Walk) { // a hint that is missing costs a round, nothing else
		node := w.Ptr(ns, l.PIDs) &^ 3
		if p, err := v.space.Translate(node); err == nil && w.OK() {
			k.tables = append(k.tables, p.Page())
		}
	})
}
