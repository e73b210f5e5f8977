package btf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"sync"

	cbtf "github.com/cilium/ebpf/btf"
)

// Kinds of types (include/uapi/linux/btf.h). Each type is twelve bytes (name, info,
// size or type) and what its kind appends.
const (
	kindInt       = 1
	kindPointer   = 2
	kindArray     = 3
	kindStruct    = 4
	kindUnion     = 5
	kindEnum      = 6
	kindForward   = 7
	kindTypedef   = 8
	kindVolatile  = 9
	kindConst     = 10
	kindRestrict  = 11
	kindFuncProto = 13
	kindVar       = 14
	kindFloat     = 16
	kindTypeTag   = 18
	kindEnum64    = 19

	typeSize = 12
)

// kindSizes are the bytes a kind appends to a type: once, and for each of the
// elements that vlen counts.
var kindSizes = [...][2]uint8{
	kindInt: {4, 0}, kindArray: {12, 0}, kindStruct: {0, 12}, kindUnion: {0, 12}, kindEnum: {0, 8},
	kindFuncProto: {0, 8}, kindVar: {4, 0}, 15 /* DATASEC */ : {0, 12}, 17 /* DECL_TAG */ : {4, 0}, kindEnum64: {0, 12},
}

// named are the kinds that are looked up by name.
const namedKinds = 1<<kindInt | 1<<kindStruct | 1<<kindUnion | 1<<kindEnum | 1<<kindTypedef | 1<<kindVar | 1<<kindEnum64

// blob is a BTF blob of which types are decoded when they are asked for. The
// library's decoder decodes all that a type leads to, through pointers too: 9 MB
// for a task_struct, and as deep a recursion as a guest cares to write.
type blob struct {
	base        *blob // what a split blob builds on
	types, text []byte
	firstID     uint32 // of types
	firstName   uint32 // offset of text[0]
	at          []uint32
	heads, next []uint32 // hash chains of types by name, as index into at plus one
	seed        maphash.Seed

	mu sync.Mutex
	decoder
}

// rawType is a type as it lies in the blob.
type rawType struct {
	name uint32
	kind uint8
	flag bool
	vlen uint32
	size uint32 // or a type
	rest []byte // what the kind appends
}

// parse indexes a blob.
func parse(data []byte, base *blob) (*blob, error) {
	size, err := Size(data)
	if err != nil {
		return nil, err
	}
	if size > len(data) {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrFormat, len(data), size)
	}
	le := binary.LittleEndian
	body := data[le.Uint32(data[4:]):size]
	section := func(at int) []byte { // Size checked that they lie inside
		off, n := uint64(le.Uint32(data[at:])), uint64(le.Uint32(data[at+4:]))
		return body[off : off+n : off+n]
	}
	b := &blob{base: base, types: section(8), text: section(16), firstID: 1, seed: maphash.MakeSeed()}
	if base != nil {
		if base.base != nil {
			return nil, fmt.Errorf("%w: a split blob on a split blob", ErrFormat)
		}
		b.firstID, b.firstName = base.firstID+uint32(len(base.at)), uint32(len(base.text))
	}
	if n := len(b.text); n > 0 && b.text[n-1] != 0 {
		return nil, fmt.Errorf("%w: names are not ended", ErrFormat)
	}
	// Kernel 7.2 has a third section, with the sizes of kinds.
	var layout []byte
	if le.Uint32(data[4:]) >= headerSize+8 {
		layout = section(24)
	}
	return b, b.index(layout)
}

// index finds where each type begins and makes the hash chains.
func (b *blob) index(layout []byte) error {
	b.at = make([]uint32, 0, len(b.types)/24)
	for off := 0; off < len(b.types); {
		if len(b.types)-off < typeSize {
			return fmt.Errorf("%w: type %d is cut", ErrFormat, b.firstID+uint32(len(b.at)))
		}
		n, err := extra(binary.LittleEndian.Uint32(b.types[off+4:]), layout)
		if err != nil {
			return fmt.Errorf("type %d: %w", b.firstID+uint32(len(b.at)), err)
		}
		if n > len(b.types)-off-typeSize {
			return fmt.Errorf("%w: type %d is cut", ErrFormat, b.firstID+uint32(len(b.at)))
		}
		b.at = append(b.at, uint32(off))
		off += typeSize + n
	}
	buckets := 1
	for buckets < len(b.at) {
		buckets *= 2
	}
	b.heads, b.next = make([]uint32, buckets), make([]uint32, len(b.at))
	for i := len(b.at) - 1; i >= 0; i-- { // from the back, so that chains ascend
		raw := b.types[b.at[i]:]
		name, info := binary.LittleEndian.Uint32(raw), binary.LittleEndian.Uint32(raw[4:])
		kind := info >> 24 & 0x7f
		if name == 0 || kind > kindEnum64 || namedKinds>>kind&1 == 0 {
			continue
		}
		text, err := b.nameBytes(name)
		if err != nil {
			return fmt.Errorf("type %d: %w", b.firstID+uint32(i), err)
		}
		h := &b.heads[maphash.Bytes(b.seed, text)&uint64(buckets-1)]
		b.next[i], *h = *h, uint32(i)+1
	}
	return nil
}

// blob lets a split blob find what it builds on.
func (b *blob) blob() *blob { return b }

// extra returns the bytes that follow a type of this info. Kinds that are not known
// here have to be in the blob's layout section.
func extra(info uint32, layout []byte) (int, error) {
	// In 6.12 vlen has 16 bits and the kind 5, in 7.2 24 and 7; what was added was zero.
	kind, vlen := int(info>>24&0x7f), int(info&0xff_ffff)
	var size [2]uint8
	switch {
	case kind > 0 && kind <= kindEnum64:
		if kind < len(kindSizes) {
			size = kindSizes[kind]
		}
	case kind > 0 && len(layout) >= 4*kind+4:
		size = [2]uint8(layout[4*kind:])
	default:
		return 0, fmt.Errorf("%w: kind %d", ErrFormat, kind)
	}
	return int(size[0]) + vlen*int(size[1]), nil
}

// nameBytes returns the name at an offset of the string tables.
func (b *blob) nameBytes(off uint32) ([]byte, error) {
	if off < b.firstName {
		return b.base.nameBytes(off)
	}
	off -= b.firstName
	if uint64(off) >= uint64(len(b.text)) {
		return nil, fmt.Errorf("%w: name at %#x", ErrFormat, off)
	}
	rest := b.text[off:]
	n := bytes.IndexByte(rest, 0)
	if n > maxName {
		return nil, fmt.Errorf("%w: name of %d bytes", ErrFormat, n)
	}
	return rest[:n], nil // index made sure of a zero at the end
}

// maxName bounds a name, in bytes: KSYM_NAME_LEN, which Rust's names fill.
const maxName = 512

func (b *blob) name(off uint32) (string, error) {
	if off == 0 {
		return "", nil
	}
	text, err := b.nameBytes(off)
	return string(text), err
}

// raw returns type id, which must be one of this blob's own.
func (b *blob) raw(id uint32) (t rawType, err error) {
	if id < b.firstID || uint64(id-b.firstID) >= uint64(len(b.at)) {
		return t, fmt.Errorf("%w: no type %d", ErrFormat, id)
	}
	start, end := b.at[id-b.firstID], uint32(len(b.types))
	if i := id - b.firstID + 1; int(i) < len(b.at) {
		end = b.at[i]
	}
	p := b.types[start:end]
	le := binary.LittleEndian
	info := le.Uint32(p[4:])
	return rawType{
		name: le.Uint32(p), kind: uint8(info >> 24 & 0x7f), flag: info>>31 != 0, vlen: info & 0xff_ffff,
		size: le.Uint32(p[8:]), rest: p[typeSize:],
	}, nil
}

// find yields the types of that name, this blob's before its base's.
func (b *blob) find(name string, yield func(handle uint64, kind uint8) bool) error {
	if name == "" {
		return nil
	}
	steps := 0
	for i := b.heads[maphash.String(b.seed, name)&uint64(len(b.heads)-1)]; i != 0; i = b.next[i-1] {
		if steps++; steps > maxNamesakes {
			return fmt.Errorf("%w: more than %d types of that name", ErrFormat, maxNamesakes)
		}
		t, err := b.raw(b.firstID + i - 1)
		if err != nil {
			return err
		}
		text, err := b.nameBytes(t.name)
		if err != nil {
			return err
		}
		if string(text) != name {
			continue
		}
		if !yield(uint64(b.firstID+i-1), t.kind) {
			return nil
		}
	}
	if b.base != nil {
		return b.base.find(name, yield)
	}
	return nil
}

// maxNamesakes bounds the types of one name.
const maxNamesakes = 1 << 12

// get decodes the type of a handle.
func (b *blob) get(handle uint64) (cbtf.Type, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.decode(b, handle)
}

// complete decodes what a pointer's target stands for.
func (b *blob) complete(f *cbtf.Fwd) (cbtf.Type, bool, error) {
	b.mu.Lock()
	handle, ok := b.behind[f]
	b.mu.Unlock()
	if !ok {
		if b.base != nil {
			return b.base.complete(f)
		}
		return nil, false, nil
	}
	t, err := b.get(handle)
	return t, err == nil, err
}
