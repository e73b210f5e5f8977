// Package btf answers questions about a kernel's types from its BTF, or from the
// DWARF of a kernel's file: where a field lies, how large a type is, what an
// enumerator is worth. Types are those of github.com/cilium/ebpf/btf. They are
// decoded here, each when it is asked for: that library's decoder follows every
// pointer, and a chain of four million, which a guest can write, ends the program.
package btf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	cbtf "github.com/cilium/ebpf/btf"
)

// MaxSize bounds a BTF blob, in bytes. Debian's largest kernel has 8 MB.
const MaxSize = 64 << 20

// Errors that questions about types end in; they wrap one of these.
var (
	ErrNoType  = errors.New("no such type")
	ErrNoField = errors.New("no such field")
	ErrFormat  = errors.New("malformed BTF")
)

// headerSize is struct btf_header (include/uapi/linux/btf.h) as of 5.10. Later
// kernels may append to it, which hdr_len tells.
const headerSize = 24

// Types is the types of one kernel or module. It may be used by several goroutines.
type Types struct {
	from typeSource
}

// typeSource is where types come from. What it returns is the caller's to read, not
// to change.
type typeSource interface {
	// find yields a handle and the kind (kindStruct, …) of each type of that name.
	find(name string, yield func(handle uint64, kind uint8) bool) error
	get(handle uint64) (cbtf.Type, error)
	// complete returns what a pointer's target stands for, false when it is none
	// that came from here.
	complete(f *cbtf.Fwd) (cbtf.Type, bool, error)
}

// Size returns the length of the blob that begins with header, in bytes, as the
// header says. header needs 24 bytes.
func Size(header []byte) (int, error) {
	if len(header) < headerSize {
		return 0, fmt.Errorf("%w: %d bytes of header", ErrFormat, len(header))
	}
	le := binary.LittleEndian
	if m := le.Uint16(header); m != 0xeb9f {
		return 0, fmt.Errorf("%w: magic %#x", ErrFormat, m)
	}
	hdr := uint64(le.Uint32(header[4:]))
	end := hdr
	section := func(at int) {
		end = max(end, hdr+uint64(le.Uint32(header[at:]))+uint64(le.Uint32(header[at+4:])))
	}
	section(8)
	section(16)
	if hdr >= headerSize+8 && len(header) >= headerSize+8 { // kernel 7.2's third section
		section(24)
	}
	if hdr < headerSize || hdr > 4096 || end > MaxSize {
		return 0, fmt.Errorf("%w: header of %d bytes, %d in all", ErrFormat, hdr, end)
	}
	return int(end), nil
}

// Parse reads a kernel's BTF. It keeps data.
func Parse(data []byte) (*Types, error) {
	b, err := parse(data, nil)
	if err != nil {
		return nil, err
	}
	return &Types{b}, nil
}

// ParseSplit reads a module's BTF, which builds on the kernel's. It keeps data.
func ParseSplit(data []byte, base *Types) (*Types, error) {
	under, ok := base.from.(interface{ blob() *blob })
	if !ok {
		return nil, errors.New("the kernel's types come from DWARF: a module's BTF builds on the kernel's BTF")
	}
	b, err := parse(data, under.blob())
	if err != nil {
		return nil, err
	}
	return &Types{b}, nil
}

// Lookup returns the type a name as written in C stands for: "task_struct",
// "struct task_struct", "union u", "enum pid_type", "pid_t", "unsigned int".
// A bare name means a struct or union first, then a typedef, enum or base type.
//
// Structs and unions behind pointers come as forward declarations, see Complete.
func (t *Types) Lookup(name string) (cbtf.Type, error) {
	kind, bare := "", name
	if k, rest, ok := strings.Cut(name, " "); ok && (k == "struct" || k == "union" || k == "enum") {
		kind, bare = k, strings.TrimSpace(rest)
	}
	typ, err := t.best(bare, func(k uint8) int { return rank(k, kind) })
	if err != nil {
		return nil, fmt.Errorf("type %q: %w", name, err)
	}
	return typ, nil
}

// best returns the first type of a name with the highest rank above 0.
func (t *Types) best(name string, rank func(kind uint8) int) (cbtf.Type, error) {
	var found uint64
	top := 0
	err := t.from.find(name, func(handle uint64, kind uint8) bool {
		if r := rank(kind); r > top {
			found, top = handle, r
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	if top == 0 {
		return nil, ErrNoType
	}
	return t.from.get(found)
}

// Var returns the type of a per-CPU variable (or of any other, where the types name
// them: DWARF does, BTF names per-CPU ones only).
func (t *Types) Var(name string) (cbtf.Type, error) {
	typ, err := t.best(name, func(k uint8) int {
		if k == kindVar {
			return 1
		}
		return 0
	})
	if err != nil {
		return nil, fmt.Errorf("variable %q: %w", name, err)
	}
	if v, ok := typ.(*cbtf.Var); ok {
		return v.Type, nil
	}
	return typ, nil
}

// Complete returns the struct or union that a forward declaration behind typedefs
// and qualifiers stands for: what a pointer's target is. Anything else is returned
// as it is, and so is what is declared without a definition.
func (t *Types) Complete(typ cbtf.Type) (cbtf.Type, error) {
	f, ok := cbtf.UnderlyingType(typ).(*cbtf.Fwd)
	if !ok {
		return typ, nil
	}
	full, ok, err := t.from.complete(f)
	if err != nil {
		return nil, fmt.Errorf("type %q: %w", f.Name, err)
	}
	if ok {
		return full, nil
	}
	kind := uint8(kindStruct)
	if f.Kind == cbtf.FwdUnion {
		kind = kindUnion
	}
	full, err = t.best(f.Name, func(k uint8) int {
		if k == kind {
			return 1
		}
		return 0
	})
	if errors.Is(err, ErrNoType) {
		return typ, nil
	}
	if err != nil {
		return nil, fmt.Errorf("type %q: %w", f.Name, err)
	}
	return full, nil
}

// rank orders the kinds of types that a name can mean.
func rank(k uint8, keyword string) int {
	switch k {
	case kindStruct:
		if keyword == "" || keyword == "struct" {
			return 5
		}
	case kindUnion:
		if keyword == "" || keyword == "union" {
			return 4
		}
	case kindTypedef:
		if keyword == "" {
			return 3
		}
	case kindEnum, kindEnum64:
		if keyword == "" || keyword == "enum" {
			return 2
		}
	case kindInt:
		if keyword == "" {
			return 1
		}
	}
	return 0
}

// Enumerator returns the value of an enumerator of the named enum; an enum
// without a name is found by any of its enumerators, so enum may be "".
func (t *Types) Enumerator(enum, name string) (int64, error) {
	if enum == "" {
		return 0, fmt.Errorf("enumerator %q: %w", name, ErrNoType)
	}
	typ, err := t.Lookup("enum " + enum)
	if err != nil {
		return 0, err
	}
	e, ok := typ.(*cbtf.Enum)
	if !ok {
		return 0, fmt.Errorf("enum %q: %w", enum, ErrNoType)
	}
	for _, v := range e.Values {
		if v.Name == name {
			return int64(v.Value), nil
		}
	}
	return 0, fmt.Errorf("enumerator %q of enum %q: %w", name, enum, ErrNoField)
}
