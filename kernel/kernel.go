// Package kernel finds the Linux kernel that runs in a machine, from nothing but
// the machine's memory, and gives typed access to its objects. It knows what all
// kernels share (symbols, types, page tables, the image); what the objects mean is
// package linux's.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/ksym"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// Kernel is one attached guest kernel: memory, symbols and types. Its methods may
// be used by several goroutines; a View belongs to one.
type Kernel struct {
	src     source.Source
	image   *image
	root    mem.Phys   // the kernel's own page tables, init_top_pgt
	levels  int        // of page tables
	tables  []mem.Phys // walked while attaching, and other pages every view needs first
	syms    *ksym.Table
	ownSyms bool // read from the kernel's memory, not supplied
	types   *lazyTypes
	banner  string
	boot    bootIdentity
	attach  AttachInfo

	mu      sync.Mutex
	layouts map[reflect.Type]any
}

// AttachInfo says how a kernel was found and what that cost.
type AttachInfo struct {
	Method   string        // ByRegisters, ByVMCoreInfo, ByScan
	Duration time.Duration // from nothing to symbols and types
	Read     uint64        // bytes of the machine's memory read
	Cached   bool          // types came from the cache
	Doubts   []string      // what could not be shown of the kernel found
}

// Options of Attach. The zero value finds everything in memory.
type Options struct {
	Cache   *Cache      // where decoded tables are kept; nil keeps none
	Types   *btf.Types  // instead of the guest's BTF
	Symbols *ksym.Table // instead of the guest's kallsyms; at link-time addresses
	banner  string      // of the kernel that Symbols are of, "" when unknown
}

// ErrNoKernel is a machine in whose memory no running kernel was found.
var ErrNoKernel = errors.New("no running Linux kernel found")

// Attach finds the kernel that runs in src: from the CPUs' registers where the
// source has them, else from what the kernel left for kdump, else from page tables
// found by looking through all of RAM. What is found is a kernel only when its own
// symbols prove it (see prove).
func Attach(ctx context.Context, src source.Source, opts Options) (*Kernel, error) {
	begun := time.Now()
	f := newFinder(ctx, src)
	var errs []error
	for _, step := range f.steps() {
		cs, err := step.find()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			errs = append(errs, fmt.Errorf("by %s: %w", step.method, err))
		case len(cs) == 0:
			errs = append(errs, fmt.Errorf("by %s: nothing found", step.method))
		}
		k, err := f.choose(cs, opts)
		if k != nil {
			k.attach.Duration = time.Since(begun)
			return k, nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("by %s: %w", step.method, err))
		}
		if hopeless(cs, err) {
			break
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrNoKernel, errors.Join(errs...))
}

// step is one way to find kernels.
type step struct {
	method string
	find   func() ([]candidate, error)
}

// steps returns the ways to find kernels in f's source, the surest first.
func (f *finder) steps() (steps []step) {
	if rr, ok := f.src.(source.RegisterReader); ok {
		steps = append(steps, step{ByRegisters, func() ([]candidate, error) {
			regs, err := rr.Registers(f.ctx)
			if err != nil {
				return nil, err
			}
			f.asked = true
			return f.fromRegisters(regs)
		}})
	}
	return append(steps, step{ByVMCoreInfo, f.fromNotes}, step{ByScan, f.fromTables})
}

// hopeless tells whether looking elsewhere in RAM cannot help: the machine is gone,
// or the CPUs run this kernel and it lacks something.
func hopeless(cs []candidate, err error) bool {
	var missing *MissingError
	return errors.Is(err, mem.ErrGone) || len(cs) == 1 && cs[0].method == ByRegisters &&
		(errors.As(err, &missing) || errors.Is(err, ErrWrongKernel))
}

// choose returns the running kernel among candidates, nil when none is one.
func (f *finder) choose(cs []candidate, opts Options) (*Kernel, error) {
	var proven []*Kernel
	var errs []error
	for _, c := range cs {
		k, err := f.prove(c, opts)
		if err != nil {
			errs = append(errs, fmt.Errorf("image at %v, page tables at %v: %w", c.image.base, c.root, err))
			continue
		}
		if !slices.Contains(f.dead, k.root) && !slices.ContainsFunc(proven, func(o *Kernel) bool { return o.root == k.root }) {
			proven = append(proven, k)
		}
	}
	switch {
	case len(proven) == 0:
		return nil, errors.Join(errs...)
	case len(proven) == 1 && proven[0].attach.Method == ByRegisters:
		return proven[0], nil // a CPU runs on it
	}
	return f.alive(proven)
}

// Source returns what the kernel is read through.
func (k *Kernel) Source() source.Source { return k.src }

// Banner returns linux_banner, without its newline.
func (k *Kernel) Banner() string { return k.banner }

// Attached says how the kernel was found.
func (k *Kernel) Attached() AttachInfo { return k.attach }

// Symbols returns the kernel's symbol table.
func (k *Kernel) Symbols() *ksym.Table { return k.syms }

// Symbol returns the address of a symbol.
func (k *Kernel) Symbol(name string) (mem.Virt, error) {
	a, ok := k.syms.Lookup(name)
	if !ok {
		return 0, fmt.Errorf("symbol %q: %w", name, ErrNoSymbol)
	}
	return a, nil
}

// ErrNoSymbol is a symbol the kernel does not have.
var ErrNoSymbol = errors.New("no such symbol")

// Slide returns how far the image lies from where a kernel with the default
// CONFIG_PHYSICAL_START of 16 MiB is linked, in bytes: how far KASLR moved it.
func (k *Kernel) Slide() uint64 {
	const linked = imageLow + 0x100_0000
	return uint64(k.image.base - linked)
}

// Types returns the kernel's types.
func (k *Kernel) Types() (*btf.Types, error) { return k.types.get() }

// Field answers as btf.Types.Field does, from the cache where it can.
func (k *Kernel) Field(path string) (btf.Field, error) { return k.types.Field(path) }

// Layout returns a struct of btf.Field members bound to the kernel's types (see
// btf.Bind). It is bound once for each kernel and type T.
func Layout[T any](k *Kernel) (*T, error) {
	l, err := k.layout(reflect.TypeFor[T]())
	if err != nil {
		return nil, err
	}
	return l.(*T), nil
}

// layout returns a pointer to a struct of type t bound to the kernel's types.
func (k *Kernel) layout(t reflect.Type) (any, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l, ok := k.layouts[t]; ok {
		return l, nil
	}
	l := reflect.New(t).Interface()
	if err := btf.Bind(k, l); err != nil {
		return nil, fmt.Errorf("types of this kernel: %w", err)
	}
	k.layouts[t] = l
	return l, nil
}

// Layouts is Layout for several at once: each of into is a pointer to a *T and is set
// to the layout of that T. It panics when one is something else.
func Layouts(k *Kernel, into ...any) error {
	for _, p := range into {
		to := reflect.ValueOf(p).Elem()
		l, err := k.layout(to.Type().Elem())
		if err != nil {
			return err
		}
		to.Set(reflect.ValueOf(l))
	}
	return nil
}
