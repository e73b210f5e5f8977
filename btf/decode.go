package btf

import (
	"encoding/binary"
	"fmt"

	cbtf "github.com/cilium/ebpf/btf"
)

// Limits on what decoding can be made to do. The largest type of Debian's kernels
// takes 1,183 nodes, the deepest nests 20.
const (
	maxDepth = 64
	maxNodes = 1 << 20 // types, members, parameters and enumerators in all
	maxBytes = 1 << 30 // of one object
)

// reader reads one type from where a decoder's types lie.
type reader interface {
	read(handle uint64, ref bool, depth int) (cbtf.Type, error)
}

// decoder makes types of what a reader reads, each once. A struct or union behind a
// pointer is not read: it becomes a forward declaration that complete knows.
type decoder struct {
	done   [2]map[uint64]cbtf.Type // by handle: themselves; as a pointer's target
	open   map[uint64]struct{}     // being decoded, to find cycles
	behind map[*cbtf.Fwd]uint64    // what forward declarations stand for
	nodes  int
}

func (d *decoder) decode(r reader, handle uint64) (cbtf.Type, error) {
	return d.typ(r, handle, false, 0)
}

// typ decodes a type; ref says that it is reached through a pointer.
func (d *decoder) typ(r reader, handle uint64, ref bool, depth int) (cbtf.Type, error) {
	way := 0
	if ref {
		way = 1
	}
	if t, ok := d.done[way][handle]; ok {
		return t, nil
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: nested too deep", ErrFormat)
	}
	if d.open == nil {
		d.open, d.behind = make(map[uint64]struct{}), make(map[*cbtf.Fwd]uint64)
		d.done = [2]map[uint64]cbtf.Type{make(map[uint64]cbtf.Type), make(map[uint64]cbtf.Type)}
	}
	key := handle<<1 | uint64(way)
	if _, ok := d.open[key]; ok {
		return nil, fmt.Errorf("%w: a type is made of itself", ErrFormat)
	}
	d.open[key] = struct{}{}
	defer delete(d.open, key)
	if err := d.spend(1); err != nil {
		return nil, err
	}
	t, err := r.read(handle, ref, depth+1)
	if err != nil {
		return nil, err
	}
	d.done[way][handle] = t
	return t, nil
}

func (d *decoder) spend(n int) error {
	if d.nodes += n; d.nodes > maxNodes || n < 0 {
		d.nodes = maxNodes
		return fmt.Errorf("%w: more than %d parts of types", ErrFormat, maxNodes)
	}
	return nil
}

// forward makes the stand-in of a struct or union behind a pointer.
func (d *decoder) forward(handle uint64, name string, union bool) *cbtf.Fwd {
	f := &cbtf.Fwd{Name: name, Kind: cbtf.FwdStruct}
	if union {
		f.Kind = cbtf.FwdUnion
	}
	d.behind[f] = handle
	return f
}

// checked returns a struct's or union's error when a member does not lie in it:
// then its bytes are not what the compiler wrote.
func checked(name string, size uint32, members []cbtf.Member) error {
	if size > maxBytes {
		return fmt.Errorf("%w: %q has %d bytes", ErrFormat, name, size)
	}
	for _, m := range members {
		bytes, err := sizeOf(m.Type)
		if err != nil {
			return fmt.Errorf("member %q of %q: %w", m.Name, name, err)
		}
		bits := uint64(bytes) * 8
		if w := uint64(m.BitfieldSize); w > 0 {
			if w > bits {
				return fmt.Errorf("%w: member %q of %q: %d bits of %d", ErrFormat, m.Name, name, w, bits)
			}
			bits = w
		} else if m.Offset%8 != 0 {
			return fmt.Errorf("%w: member %q of %q begins %d bits into it", ErrFormat, m.Name, name, m.Offset)
		}
		if uint64(m.Offset)+bits > uint64(size)*8 {
			return fmt.Errorf("%w: member %q lies outside %q", ErrFormat, m.Name, name)
		}
	}
	return nil
}

// sizeOf returns the bytes of an object of type t.
func sizeOf(t cbtf.Type) (uint32, error) {
	n := uint64(1)
	for range maxDepth {
		var size uint32
		switch u := t.(type) {
		case *cbtf.Array:
			if n *= uint64(u.Nelems); n > maxBytes {
				return 0, fmt.Errorf("%w: an array of %d elements", ErrFormat, n)
			}
			t = u.Type
			continue
		case *cbtf.Typedef:
			t = u.Type
			continue
		case *cbtf.Const:
			t = u.Type
			continue
		case *cbtf.Volatile:
			t = u.Type
			continue
		case *cbtf.Restrict:
			t = u.Type
			continue
		case *cbtf.TypeTag:
			t = u.Type
			continue
		case *cbtf.Struct:
			size = u.Size
		case *cbtf.Union:
			size = u.Size
		case *cbtf.Int:
			size = u.Size
		case *cbtf.Enum:
			if size = u.Size; size == 0 {
				return 0, fmt.Errorf("%w: enum %q is only declared", ErrFormat, u.Name)
			}
		case *cbtf.Float:
			size = u.Size
		case *cbtf.Pointer:
			size = 8
		default:
			return 0, fmt.Errorf("%w: %T has no size", ErrFormat, t)
		}
		if n *= uint64(size); n > maxBytes {
			return 0, fmt.Errorf("%w: an object of %d bytes", ErrFormat, n)
		}
		return uint32(n), nil
	}
	return 0, fmt.Errorf("%w: nested too deep", ErrFormat)
}

// read implements reader.
func (b *blob) read(handle uint64, ref bool, depth int) (cbtf.Type, error) {
	id := uint32(handle)
	if id == 0 {
		return &cbtf.Void{}, nil
	}
	if id < b.firstID {
		b.base.mu.Lock()
		defer b.base.mu.Unlock()
		return b.base.typ(b.base, handle, ref, depth)
	}
	raw, err := b.raw(id)
	if err != nil {
		return nil, err
	}
	name, err := b.name(raw.name)
	if err == nil {
		var t cbtf.Type
		if t, err = b.build(id, raw, name, ref, depth); err == nil {
			return t, nil
		}
	}
	if name != "" {
		err = fmt.Errorf("type %q: %w", name, err)
	}
	return nil, err
}

// build makes a type of its raw form.
func (b *blob) build(id uint32, raw rawType, name string, ref bool, depth int) (cbtf.Type, error) {
	le := binary.LittleEndian
	inner := func(id uint32, ref bool) (cbtf.Type, error) { return b.typ(b, uint64(id), ref, depth) }
	switch raw.kind {
	case kindInt:
		return b.integer(raw, name)
	case kindFloat:
		return &cbtf.Float{Name: name, Size: raw.size}, nil
	case kindPointer:
		t, err := inner(raw.size, true)
		return &cbtf.Pointer{Target: t}, err
	case kindArray:
		t, err := inner(le.Uint32(raw.rest), ref)
		if err != nil {
			return nil, err
		}
		return &cbtf.Array{Type: t, Nelems: le.Uint32(raw.rest[8:])}, nil
	case kindStruct, kindUnion:
		if ref {
			return b.forward(uint64(id), name, raw.kind == kindUnion), nil
		}
		return b.composite(raw, name, depth)
	case kindEnum, kindEnum64:
		return b.enum(raw, name)
	case kindForward:
		f := &cbtf.Fwd{Name: name, Kind: cbtf.FwdStruct}
		if raw.flag {
			f.Kind = cbtf.FwdUnion
		}
		return f, nil
	case kindFuncProto:
		return b.function(raw, depth)
	}
	t, err := inner(raw.size, ref)
	if err != nil {
		return nil, err
	}
	switch raw.kind {
	case kindTypedef:
		return &cbtf.Typedef{Name: name, Type: t}, nil
	case kindVolatile:
		return &cbtf.Volatile{Type: t}, nil
	case kindConst:
		return &cbtf.Const{Type: t}, nil
	case kindRestrict:
		return &cbtf.Restrict{Type: t}, nil
	case kindTypeTag:
		return &cbtf.TypeTag{Type: t, Value: name}, nil
	case kindVar:
		return &cbtf.Var{Name: name, Type: t}, nil
	}
	return nil, fmt.Errorf("%w: kind %d is none of an object", ErrFormat, raw.kind)
}

// integer decodes an INT. Those that are a bit field by themselves went out of use
// before 5.10.
func (b *blob) integer(raw rawType, name string) (cbtf.Type, error) {
	v := binary.LittleEndian.Uint32(raw.rest)
	if bits, off := v&0xff, v>>16&0xff; off != 0 || bits != raw.size*8 || bits == 0 || bits > 128 {
		return nil, fmt.Errorf("%w: an integer of %d bits at bit %d in %d bytes", ErrFormat, bits, off, raw.size)
	}
	return &cbtf.Int{Name: name, Size: raw.size, Encoding: cbtf.IntEncoding(v >> 24 & 0xf)}, nil
}

func (b *blob) composite(raw rawType, name string, depth int) (cbtf.Type, error) {
	if err := b.spend(int(raw.vlen)); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	members := make([]cbtf.Member, raw.vlen)
	for i := range members {
		p, m := raw.rest[12*i:], &members[i]
		var err error
		if m.Name, err = b.name(le.Uint32(p)); err != nil {
			return nil, err
		}
		if m.Type, err = b.typ(b, uint64(le.Uint32(p[4:])), false, depth); err != nil {
			return nil, fmt.Errorf("member %q: %w", m.Name, err)
		}
		off := le.Uint32(p[8:])
		if raw.flag { // some members are bit fields
			m.BitfieldSize, off = cbtf.Bits(off>>24), off&0xff_ffff
		}
		m.Offset = cbtf.Bits(off)
	}
	if err := checked(name, raw.size, members); err != nil {
		return nil, err
	}
	if raw.kind == kindUnion {
		return &cbtf.Union{Name: name, Size: raw.size, Members: members}, nil
	}
	return &cbtf.Struct{Name: name, Size: raw.size, Members: members}, nil
}

func (b *blob) enum(raw rawType, name string) (cbtf.Type, error) {
	if err := b.spend(int(raw.vlen)); err != nil {
		return nil, err
	}
	if raw.size != 1 && raw.size != 2 && raw.size != 4 && raw.size != 8 {
		return nil, fmt.Errorf("%w: an enum of %d bytes", ErrFormat, raw.size)
	}
	le := binary.LittleEndian
	e := &cbtf.Enum{Name: name, Size: raw.size, Signed: raw.flag, Values: make([]cbtf.EnumValue, raw.vlen)}
	p := raw.rest
	for i := range e.Values {
		v := &e.Values[i]
		var err error
		if v.Name, err = b.name(le.Uint32(p)); err != nil {
			return nil, err
		}
		low := le.Uint32(p[4:])
		switch {
		case raw.kind == kindEnum64:
			v.Value, p = uint64(low)|uint64(le.Uint32(p[8:]))<<32, p[12:]
		case raw.flag:
			v.Value, p = uint64(int64(int32(low))), p[8:]
		default:
			v.Value, p = uint64(low), p[8:]
		}
	}
	return e, nil
}

func (b *blob) function(raw rawType, depth int) (cbtf.Type, error) {
	if err := b.spend(int(raw.vlen)); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	f := &cbtf.FuncProto{Params: make([]cbtf.FuncParam, raw.vlen)}
	var err error
	if f.Return, err = b.typ(b, uint64(raw.size), true, depth); err != nil {
		return nil, err
	}
	for i := range f.Params {
		p := raw.rest[8*i:]
		if f.Params[i].Name, err = b.name(le.Uint32(p)); err != nil {
			return nil, err
		}
		if f.Params[i].Type, err = b.typ(b, uint64(le.Uint32(p[4:])), true, depth); err != nil {
			return nil, err
		}
	}
	return f, nil
}
