package kernel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/ksym"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// ErrRebooted is a machine that no longer runs the kernel that was attached to.
var ErrRebooted = errors.New("the machine no longer runs this kernel")

// bootLayout is what differs from boot to boot even without KASLR.
type bootLayout struct {
	Canary btf.Field `btf:"task_struct.stack_canary ?"` // random (arch/x86/include/asm/stackprotector.h)
	Next   btf.Field `btf:"task_struct.tasks.next"`     // of init_task: pid 1, which never ends
}

// bootIdentity tells one boot of a kernel from another.
type bootIdentity struct {
	banner       string
	canary, init uint64
	directMap    uint64
}

// identity reads what tells this boot from another, from memory as it is now.
func (k *Kernel) identity(ctx context.Context) (id bootIdentity, err error) {
	l, err := Layout[bootLayout](k)
	if err != nil {
		return id, err
	}
	task, err := k.Symbol("init_task")
	if err != nil {
		return id, err
	}
	if id.banner, err = k.readBanner(); err != nil {
		return id, err
	}
	v := k.View(ctx, mem.Options{Static: true})
	err = v.Do(func(w *Walk) {
		id.init = w.Uint(task, l.Next)
		if l.Canary.Known {
			id.canary = w.Uint(task, l.Canary)
		}
		if a, ok := k.syms.Lookup("page_offset_base"); ok {
			id.directMap = w.Word(a)
		}
	})
	return id, err
}

// Check tells whether the machine still runs this kernel: nil when it does,
// ErrRebooted when it runs another or none, mem.ErrGone when the machine ended. The
// CPUs are asked where the source knows their registers; else memory must still
// hold this boot's marks.
func (k *Kernel) Check(ctx context.Context) error {
	if r, ok := k.src.(source.Refresher); ok {
		if err := r.Refresh(ctx); err != nil {
			return err
		}
	}
	var doubt error
	if rr, ok := k.src.(source.RegisterReader); ok {
		if regs, err := rr.Registers(ctx); err == nil {
			if doubt, err = k.mappedBy(ctx, regs); err != nil {
				return err
			}
		}
	}
	id, err := k.identity(ctx)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, mem.ErrGone):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrRebooted, err)
	case id != k.boot:
		return fmt.Errorf("%w: it was booted anew", ErrRebooted)
	}
	if doubt == nil {
		return nil
	}
	if _, err := moving(ctx, []*Kernel{k}, clockWait); !errors.Is(err, errStill) {
		return err
	}
	return fmt.Errorf("%w: %w, and %w", ErrRebooted, doubt, errStill)
}

// mappedBy checks that the CPUs' page tables map this kernel's image where it was.
// It fails with ErrRebooted when they map another one. doubt says why they do not
// tell: each may be in its firmware or run a nested guest just now, or one of them
// the kernel for kdump.
func (k *Kernel) mappedBy(ctx context.Context, regs []source.Registers) (doubt, err error) {
	cs, err := newFinder(ctx, k.src).fromRegisters(regs)
	own := slices.ContainsFunc(cs, func(c candidate) bool {
		return c.image.base == k.image.base && c.image.delta == k.image.delta
	})
	switch {
	case own && len(cs) == 1:
		return nil, nil
	case own:
		return errors.New("its CPUs run more than one kernel"), nil
	case len(cs) == 0:
		return fmt.Errorf("no CPU runs on it: %w", err), nil
	}
	return nil, fmt.Errorf("%w: its CPUs run one elsewhere", ErrRebooted)
}

// TypesDigest returns the SHA-256 of the kernel's BTF as it lay in memory at
// attach, and false when types were supplied instead.
func (k *Kernel) TypesDigest() ([sha256.Size]byte, bool) { return k.types.digest, k.types.start != 0 }

// SymbolsDigest returns the SHA-256 of the kernel's kallsyms as they lay in memory
// at attach (see ksym.Table.Digest), and false when symbols were supplied instead.
func (k *Kernel) SymbolsDigest() ([sha256.Size]byte, bool) {
	if k.ownSyms {
		return k.syms.Digest(), true
	}
	return [sha256.Size]byte{}, false
}

// Tampered reads the kernel's tables of types and symbols again and returns a
// finding for each that is not what it was at attach; nothing in a kernel writes
// to them.
func (k *Kernel) Tampered() ([]Finding, error) {
	var out []Finding
	if k.types.start != 0 {
		now, err := k.digest(k.types.start, k.types.size)
		if err != nil {
			return nil, fmt.Errorf("read BTF again: %w", err)
		}
		if now != k.types.digest {
			out = append(out, Finding{"BTF", "the types in the kernel's memory changed since attach"})
		}
	}
	if k.ownSyms {
		now, err := ksym.Load(k.image, k.syms.Locations())
		switch {
		case errors.Is(err, mem.ErrGone):
			return nil, fmt.Errorf("read kallsyms again: %w", err)
		case err != nil || now.Digest() != k.syms.Digest():
			out = append(out, Finding{"kallsyms", "the symbols in the kernel's memory changed since attach"})
		}
	}
	return out, nil
}
