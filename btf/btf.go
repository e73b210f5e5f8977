// Package btf answers questions about a kernel's types from its BTF: where a
// field lies, how large a type is, what an enumerator is worth. The format is
// read by github.com/cilium/ebpf/btf; this package bounds what that is given and
// turns answers into offsets that code can keep.
package btf

import (
	"bytes"
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

// Types is the types of one kernel or module.
type Types struct {
	spec *cbtf.Spec
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
	end := hdr + max(uint64(le.Uint32(header[8:]))+uint64(le.Uint32(header[12:])),
		uint64(le.Uint32(header[16:]))+uint64(le.Uint32(header[20:])))
	if hdr < headerSize || hdr > 4096 || end > MaxSize {
		return 0, fmt.Errorf("%w: header of %d bytes, %d in all", ErrFormat, hdr, end)
	}
	return int(end), nil
}

// Parse reads a kernel's BTF. It keeps blob.
func Parse(blob []byte) (*Types, error) {
	blob, err := plain(blob)
	if err != nil {
		return nil, err
	}
	spec, err := load(func() (*cbtf.Spec, error) { return cbtf.LoadSpecFromReader(bytes.NewReader(blob)) })
	if err != nil {
		return nil, err
	}
	return &Types{spec}, nil
}

// ParseSplit reads a module's BTF, which builds on the kernel's.
func ParseSplit(blob []byte, base *Types) (*Types, error) {
	blob, err := plain(blob)
	if err != nil {
		return nil, err
	}
	spec, err := load(func() (*cbtf.Spec, error) { return cbtf.LoadSplitSpecFromReader(bytes.NewReader(blob), base.spec) })
	if err != nil {
		return nil, err
	}
	return &Types{spec}, nil
}

// load keeps a parser that panics on what a guest wrote from ending the program.
func load(f func() (*cbtf.Spec, error)) (spec *cbtf.Spec, err error) {
	defer func() {
		if p := recover(); p != nil {
			spec, err = nil, fmt.Errorf("%w: %v", ErrFormat, p)
		}
	}()
	if spec, err = f(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return spec, nil
}

// plain returns blob with a header of 24 bytes and a string table that is not
// empty, which is what the library accepts: later kernels have longer headers,
// and a module that adds no names has no string table.
func plain(blob []byte) ([]byte, error) {
	size, err := Size(blob)
	if err != nil {
		return nil, err
	}
	if size > len(blob) {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrFormat, len(blob), size)
	}
	le := binary.LittleEndian
	hdr, strLen := int(le.Uint32(blob[4:])), le.Uint32(blob[20:])
	if hdr == headerSize && strLen > 0 {
		return blob[:size], nil
	}
	typeOff, typeLen, strOff := int(le.Uint32(blob[8:])), int(le.Uint32(blob[12:])), int(le.Uint32(blob[16:]))
	out := make([]byte, headerSize, headerSize+size)
	copy(out, blob[:headerSize])
	out = append(out, blob[hdr+typeOff:hdr+typeOff+typeLen]...)
	out = append(out, blob[hdr+strOff:hdr+strOff+int(strLen)]...)
	if strLen == 0 {
		out = append(out, 0)
		strLen = 1
	}
	le.PutUint32(out[4:], headerSize)
	le.PutUint32(out[8:], 0)
	le.PutUint32(out[16:], uint32(typeLen))
	le.PutUint32(out[20:], strLen)
	return out, nil
}

// Lookup returns the type a name as written in C stands for: "task_struct",
// "struct task_struct", "union u", "enum pid_type", "pid_t", "unsigned int".
// A bare name means a struct or union first, then a typedef, enum or base type.
func (t *Types) Lookup(name string) (typ cbtf.Type, err error) {
	defer func() {
		if p := recover(); p != nil {
			typ, err = nil, fmt.Errorf("type %q: %w: %v", name, ErrFormat, p)
		}
	}()
	kind, bare := "", name
	if k, rest, ok := strings.Cut(name, " "); ok && (k == "struct" || k == "union" || k == "enum") {
		kind, bare = k, strings.TrimSpace(rest)
	}
	all, err := t.spec.AnyTypesByName(bare)
	if err != nil {
		return nil, fmt.Errorf("type %q: %w", name, ErrNoType)
	}
	best, rank := cbtf.Type(nil), 0
	for _, c := range all {
		if r := rankOf(c, kind); r > rank {
			best, rank = c, r
		}
	}
	if best == nil {
		return nil, fmt.Errorf("type %q: %w", name, ErrNoType)
	}
	return best, nil
}

func rankOf(t cbtf.Type, kind string) int {
	switch t.(type) {
	case *cbtf.Struct:
		if kind == "" || kind == "struct" {
			return 5
		}
	case *cbtf.Union:
		if kind == "" || kind == "union" {
			return 4
		}
	case *cbtf.Typedef:
		if kind == "" {
			return 3
		}
	case *cbtf.Enum:
		if kind == "" || kind == "enum" {
			return 2
		}
	case *cbtf.Int:
		if kind == "" {
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
