package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/internal/vmlinux"
	"github.com/umbravm/umbra/ksym"
	"github.com/umbravm/umbra/mem"
)

// ErrWrongKernel is symbols or types supplied that are another kernel's.
var ErrWrongKernel = errors.New("supplied for another kernel")

// Supply names files that stand in for what a kernel does not carry in its memory,
// or for what one does not want to believe it. Each may be "".
type Supply struct {
	Vmlinux   string // the kernel's ELF file: symbols and types, what it has of them
	BTF       string // types: a file of nothing but BTF
	SystemMap string // symbols: a System.map, or a /proc/kallsyms
}

// Fill reads the files into opts. The special ones win over Vmlinux.
func (s Supply) Fill(opts *Options) error {
	if s.Vmlinux != "" {
		if err := fromVmlinux(s.Vmlinux, opts); err != nil {
			return fmt.Errorf("vmlinux: %w", err)
		}
	}
	var err error
	if s.BTF != "" {
		if opts.Types, err = btf.FromFile(s.BTF); err != nil {
			return fmt.Errorf("BTF: %w", err)
		}
	}
	if s.SystemMap != "" {
		if opts.Symbols, err = readSystemMap(s.SystemMap); err != nil {
			return fmt.Errorf("symbol map: %w", err)
		}
	}
	return nil
}

func readSystemMap(path string) (*ksym.Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := ksym.ReadSystemMap(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// fromVmlinux takes what a kernel's ELF file has: a stripped one has no symbols, one
// built without debugging information no types.
func fromVmlinux(path string, opts *Options) error {
	types, typesErr := btf.FromVmlinux(path)
	if typesErr != nil && !errors.Is(typesErr, btf.ErrNoTypes) {
		return typesErr
	}
	syms, symsErr := ksym.FromVmlinux(path)
	switch {
	case symsErr != nil && !errors.Is(symsErr, ksym.ErrStripped):
		return symsErr
	case symsErr != nil && typesErr != nil:
		return errors.Join(typesErr, symsErr)
	}
	if types != nil {
		opts.Types = types
	}
	if syms != nil {
		opts.Symbols = syms
		opts.banner = vmlinuxBanner(path, syms)
	}
	return nil
}

// vmlinuxBanner returns linux_banner (init/version.c) as the file has it, "" when
// the file does not hold it: one of nothing but debugging information.
func vmlinuxBanner(path string, syms *ksym.Table) string {
	a, ok := syms.Lookup("linux_banner")
	if !ok {
		return ""
	}
	f, err := vmlinux.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := f.At(uint64(a), maxBanner)
	if err != nil {
		return ""
	}
	banner, _ := parseBanner(text)
	return banner
}

// maxBanner bounds linux_banner, in bytes.
const maxBanner = 512

// parseBanner returns the banner that begins text, without its newline.
func parseBanner(text []byte) (string, bool) {
	text, _, ok := bytes.Cut(text, []byte{0})
	if !ok || !bytes.HasPrefix(text, []byte("Linux version ")) {
		return "", false
	}
	return string(bytes.TrimSuffix(text, []byte("\n"))), true
}

// slide moves symbols from the addresses they were supplied at, those of the link
// or of another boot, to where the image lies.
func slide(t *ksym.Table, im *image) (*ksym.Table, error) {
	text, ok := t.Lookup("_text")
	if !ok {
		return nil, fmt.Errorf("the symbols supplied: symbol %q: %w", "_text", ErrNoSymbol)
	}
	slid, err := t.Slide(uint64(im.base - text))
	if err != nil {
		return nil, fmt.Errorf("symbols %w: %w", ErrWrongKernel, err)
	}
	return slid, nil
}

// suppliedSymbols makes err say that symbols of another kernel were supplied, when
// they were.
func suppliedSymbols(opts Options, err error) error {
	if opts.Symbols == nil || cannotRead(err) {
		return err
	}
	return fmt.Errorf("symbols %w: %w", ErrWrongKernel, err)
}

// suppliedTypes is suppliedSymbols for types.
func suppliedTypes(opts Options, err error) error {
	if opts.Types == nil || cannotRead(err) {
		return err
	}
	return fmt.Errorf("types %w: %w", ErrWrongKernel, err)
}

// cannotRead tells whether err is the machine's or the caller's doing.
func cannotRead(err error) bool {
	return errors.Is(err, mem.ErrGone) || errors.Is(err, mem.ErrNotRecorded) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// proveBanner compares the running kernel's banner with that of the file its
// symbols were supplied from.
func (k *Kernel) proveBanner(opts Options) error {
	if opts.banner != "" && opts.banner != k.banner {
		return fmt.Errorf("vmlinux %w: it is of %q, the machine runs %q", ErrWrongKernel, opts.banner, k.banner)
	}
	return nil
}

// suppliedProof are members of the first task that lead back to it, and to what
// symbols name (init/init_task.c). Types of another build agree on none of them
// for long.
type suppliedProof struct {
	Parent  btf.Field `btf:"task_struct.real_parent"`
	Leader  btf.Field `btf:"task_struct.group_leader"`
	Signal  btf.Field `btf:"task_struct.signal"`
	Handler btf.Field `btf:"task_struct.sighand"`
	Next    btf.Field `btf:"task_struct.tasks.next"`
	Prev    btf.Field `btf:"task_struct.tasks.prev"`
	PGD     btf.Field `btf:"mm_struct.pgd"`
}

// proveSuppliedTypes shows that types which did not come from the kernel fit its
// first task.
func (k *Kernel) proveSuppliedTypes(ctx context.Context) error {
	l, err := Layout[suppliedProof](k)
	if err != nil {
		return err
	}
	at := make(map[string]mem.Virt)
	for _, name := range []string{"init_task", "init_mm", "init_signals", "init_sighand", "init_top_pgt"} {
		if at[name], err = k.Symbol(name); err != nil {
			return err
		}
	}
	task := at["init_task"]
	return k.View(ctx, mem.Options{}).Do(func(w *Walk) {
		same := func(what string, got, want mem.Virt) {
			if w.OK() && got != want {
				w.Failf("init_task at %v: %s is %v, not %v", task, what, got, want)
			}
		}
		same("real_parent", w.Ptr(task, l.Parent), task)
		same("group_leader", w.Ptr(task, l.Leader), task)
		same("signal", w.Ptr(task, l.Signal), at["init_signals"])
		same("sighand", w.Ptr(task, l.Handler), at["init_sighand"])
		next := w.Ptr(task, l.Next)
		same("tasks.next's prev", w.Ptr(next-mem.Virt(l.Next.Offset), l.Prev), task+mem.Virt(l.Next.Offset))
		same("init_mm.pgd", w.Ptr(at["init_mm"], l.PGD), at["init_top_pgt"])
	})
}
