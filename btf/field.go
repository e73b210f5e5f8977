package btf

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	cbtf "github.com/cilium/ebpf/btf"
)

// Field says where in an object something lies and how to read it.
type Field struct {
	Name   string // as asked for, "task_struct.comm"
	Offset uint32 // bytes from the start of the object
	Size   uint32 // bytes, of the whole field; 0 for a flexible array
	Elem   uint32 // bytes of one element when it is an array, 0 otherwise
	BitOff uint8  // for a bit field: bits from Offset on
	Bits   uint8  // for a bit field: its width, 0 otherwise
	Signed bool   // an integer that is sign-extended
	Known  bool   // the kernel has it; false for the zero Field
}

// Len returns the number of elements of an array field.
func (f Field) Len() int {
	if f.Elem == 0 {
		return 0
	}
	return int(f.Size / f.Elem)
}

// Field finds what a path names: a type and then members, "sock.sk_wmem_queued"
// or "sock.__sk_common.skc_family"; members of anonymous structs and unions are
// found as in C. A type alone gives a Field of offset 0 and the type's size.
func (t *Types) Field(path string) (Field, error) {
	parts := strings.Split(path, ".")
	typ, err := t.Lookup(parts[0])
	if err != nil {
		return Field{}, err
	}
	var bits, width uint32
	for _, name := range parts[1:] {
		left := maxSearched
		m, off, ok := member(typ, name, maxAnonymous, &left)
		if left < 0 {
			return Field{}, fmt.Errorf("field %q: %w: more than %d members to look at", path, ErrFormat, maxSearched)
		}
		if !ok {
			return Field{}, fmt.Errorf("field %q: %w", path, ErrNoField)
		}
		bits, width, typ = bits+off, uint32(m.BitfieldSize), m.Type
	}
	size, elem, signed, err := shape(typ)
	if err != nil {
		return Field{}, fmt.Errorf("field %q: %w", path, err)
	}
	f := Field{Name: path, Offset: bits / 8, Size: size, Elem: elem, Signed: signed, Known: true}
	if width > 0 {
		if width > 56 { // with its offset in the first byte it must fit one word
			return Field{}, fmt.Errorf("field %q: %w: %d bits", path, ErrFormat, width)
		}
		f.BitOff, f.Bits = uint8(bits%8), uint8(width)
	}
	return f, nil
}

// Member finds a member of a struct or union by name, through anonymous ones. off
// is its distance from the start of t, in bits.
func Member(t cbtf.Type, name string) (m cbtf.Member, off uint32, ok bool) {
	left := maxSearched
	return member(t, name, maxAnonymous, &left)
}

// Bounds of the search for a member: anonymous structs in each other, and members
// looked at in all, since one type can be in another many times.
const (
	maxAnonymous = 16
	maxSearched  = 1 << 16
)

func member(t cbtf.Type, name string, depth int, left *int) (cbtf.Member, uint32, bool) {
	var members []cbtf.Member
	switch u := cbtf.UnderlyingType(t).(type) {
	case *cbtf.Struct:
		members = u.Members
	case *cbtf.Union:
		members = u.Members
	}
	if *left -= len(members); depth == 0 || *left < 0 || name == "" {
		return cbtf.Member{}, 0, false
	}
	for _, m := range members {
		if m.Name == name {
			return m, uint32(m.Offset), true
		}
	}
	for _, m := range members {
		if m.Name == "" {
			if in, off, ok := member(m.Type, name, depth-1, left); ok {
				return in, uint32(m.Offset) + off, true
			}
		}
	}
	return cbtf.Member{}, 0, false
}

// shape returns how a value of type t is read.
func shape(t cbtf.Type) (size, elem uint32, signed bool, err error) {
	if size, err = sizeOf(t); err != nil {
		return 0, 0, false, err
	}
	switch u := cbtf.UnderlyingType(t).(type) {
	case *cbtf.Array:
		if elem, err = sizeOf(u.Type); err != nil {
			return 0, 0, false, err
		}
	case *cbtf.Int:
		signed = u.Encoding == cbtf.Signed
	case *cbtf.Enum:
		signed = u.Signed
	}
	return size, elem, signed, nil
}

// Binder answers the questions Bind asks.
type Binder interface {
	Field(path string) (Field, error)
}

// Bind fills the members of type Field of the struct that layout points to. Each
// has a tag that names what it stands for, alternatives newest first:
//
//	State btf.Field `btf:"task_struct.__state task_struct.state"`
//
// A tag that ends in " ?" is optional: what no alternative finds stays the zero
// Field. Anything else not found is an error that names all of it. Types that are
// malformed, or cannot be read, are an error: they do not mean that a field is missing.
func Bind(t Binder, layout any) error {
	v := reflect.ValueOf(layout).Elem()
	var missing []string
	for i := range v.NumField() {
		f, ok := v.Field(i).Addr().Interface().(*Field)
		if !ok {
			continue
		}
		tag := v.Type().Field(i).Tag.Get("btf")
		paths := strings.Fields(tag)
		optional := len(paths) > 0 && paths[len(paths)-1] == "?"
		if optional {
			paths = paths[:len(paths)-1]
		}
		found := false
		for _, p := range paths {
			got, err := t.Field(p)
			if err == nil {
				*f, found = got, true
				break
			}
			if !errors.Is(err, ErrNoField) && !errors.Is(err, ErrNoType) {
				return err
			}
		}
		if !found && !optional {
			missing = append(missing, strings.Join(paths, " or "))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(missing, ", "), ErrNoField)
	}
	return nil
}
