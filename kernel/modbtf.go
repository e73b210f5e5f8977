package kernel

import (
	"errors"
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/mem"
)

// ErrNoModuleTypes is a module whose types the kernel does not hold.
var ErrNoModuleTypes = errors.New("the kernel holds no types of this module")

// moduleTypesLayout is kernel/bpf/btf.c, since 5.11. The module's own copy goes
// when its init memory does; the kernel's stays while the module is loaded.
type moduleTypesLayout struct {
	List   btf.Field `btf:"btf_module.list"`
	Module btf.Field `btf:"btf_module.module"`
	BTF    btf.Field `btf:"btf_module.btf"`
	Name   btf.Field `btf:"module.name"`
	Data   btf.Field `btf:"btf.data"`
	Size   btf.Field `btf:"btf.data_size"`
}

// maxModuleTypes bounds the modules with types of their own.
const maxModuleTypes = 1 << 16

// ModuleTypes returns the types of a loaded module, on top of the kernel's. A
// module built against a distilled base (.BTF.base, since 6.11) has been related to
// the kernel's types by the kernel itself. The error wraps ErrNoModuleTypes when
// the kernel has none of that name.
func (k *Kernel) ModuleTypes(v *View, name string) (*btf.Types, error) {
	fail := func(err error) (*btf.Types, error) { return nil, fmt.Errorf("types of module %q: %w", name, err) }
	l, err := Layout[moduleTypesLayout](k)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", ErrNoModuleTypes, err))
	}
	head, err := k.Symbol("btf_modules")
	if err != nil {
		return fail(fmt.Errorf("%w: %w", ErrNoModuleTypes, err))
	}
	var blob []byte
	err = v.Do(func(w *Walk) {
		blob = nil
		if at := findModuleTypes(w, l, head, name); at != 0 {
			blob = readModuleTypes(w, l, at)
		} else if w.OK() {
			w.Fail(ErrNoModuleTypes)
		}
	})
	if err != nil {
		return fail(err)
	}
	base, err := k.Types()
	if err != nil {
		return fail(err)
	}
	types, err := btf.ParseSplit(blob, base)
	if err != nil {
		return fail(err)
	}
	return types, nil
}

// findModuleTypes returns the struct btf of the named module, 0 when there is none.
func findModuleTypes(w *Walk, l *moduleTypesLayout, head mem.Virt, name string) mem.Virt {
	seen := make(map[mem.Virt]struct{})
	for p := w.Pointer(head); w.OK() && p != head; p = w.Pointer(p) {
		if _, again := seen[p]; again {
			w.Failf("list of modules' types at %v: %w", head, ErrLoop)
			return 0
		}
		if len(seen) == maxModuleTypes {
			w.Failf("list of modules' types at %v: %w", head, ErrTooLong)
			return 0
		}
		seen[p] = struct{}{}
		entry := p - mem.Virt(l.List.Offset)
		if w.Text(w.Ptr(entry, l.Module), l.Name) == name {
			return w.Follow(entry, l.BTF)
		}
	}
	return 0
}

// readModuleTypes reads the blob of the struct btf at a; all of its pages are
// tried before one that is missing ends the walk.
func readModuleTypes(w *Walk, l *moduleTypesLayout, a mem.Virt) []byte {
	data, size := w.Ptr(a, l.Data), w.Uint(a, l.Size)
	if w.OK() && size > MaxRead {
		w.Failf("%d bytes of types: %w", size, ErrTooLong)
	}
	if !w.OK() {
		return nil
	}
	blob := make([]byte, size)
	var first error
	for done := uint64(0); done < size; {
		at := data + mem.Virt(done)
		chunk := min(size-done, uint64(mem.PageSize-at&(mem.PageSize-1)))
		if err := w.Try(func() { w.Read(at, blob[done:done+chunk]) }); err != nil && first == nil {
			first = err
		}
		done += chunk
	}
	if first != nil {
		w.Fail(first)
		return nil
	}
	return blob
}
