package kernel

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"

	cbtf "github.com/cilium/ebpf/btf"

	"github.com/umbravm/umbra/mem"
)

// Bounds of a value: bytes of the object, things in it, how deep they nest, and
// bytes of a string that a pointer in it leads to.
const (
	maxValueBytes = 1 << 20
	maxValueNodes = 1 << 16
	maxValueDepth = 32
	maxValueText  = 200
)

// Node is a value, or a part of one. Exactly one of Scalar, Fields and Elems says
// what it is: a number, truth value or string; the members of a struct or union;
// the elements of an array.
type Node struct {
	Scalar any // int64, uint64, bool, string, or mem.Virt of a pointer
	Note   string
	Fields []NamedNode
	Elems  []Node

	cast string // of a pointer: its type
}

// NamedNode is a member. Members of anonymous structs and unions stand among those
// of what they are in, as in C.
type NamedNode struct {
	Name string
	Node Node
}

// MarshalJSON renders pointers as hexadecimal strings and the rest as JSON has it.
func (n Node) MarshalJSON() ([]byte, error) {
	switch {
	case n.Fields != nil:
		var b bytes.Buffer
		for i, f := range n.Fields {
			sep := byte(',')
			if i == 0 {
				sep = '{'
			}
			b.WriteByte(sep)
			name, err := json.Marshal(f.Name)
			if err != nil {
				return nil, err
			}
			value, err := f.Node.MarshalJSON()
			if err != nil {
				return nil, err
			}
			b.Write(name)
			b.WriteByte(':')
			b.Write(value)
		}
		if len(n.Fields) == 0 {
			b.WriteByte('{')
		}
		b.WriteByte('}')
		return b.Bytes(), nil
	case n.Elems != nil:
		return json.Marshal(n.Elems)
	}
	if p, ok := n.Scalar.(mem.Virt); ok {
		return json.Marshal(p.String())
	}
	return json.Marshal(n.Scalar)
}

// reader turns the bytes of an object into nodes.
type valueReader struct {
	w     *Walk
	nodes int
}

// value reads what an operand stands for.
func (e *evaluator) value(x operand) (Value, error) {
	v := Value{Type: typeText(x.typ)}
	r := valueReader{w: e.w}
	if x.isObj {
		addr := x.addr
		v.Addr = &addr
	}
	if _, void := cbtf.UnderlyingType(x.typ).(*cbtf.Void); void {
		_, err := e.number(x)
		return v, err
	}
	data := make([]byte, 8)
	var err error
	switch {
	case !x.isObj || x.bits > 0:
		var n uint64
		if n, err = e.number(x); err != nil {
			return v, err
		}
		binary.LittleEndian.PutUint64(data, n)
	default:
		if data, err = e.object(x); err != nil {
			return v, err
		}
	}
	v.Node, err = r.node(x.typ, data, 0)
	if err == nil {
		err = r.w.Err()
	}
	return v, err
}

// object reads the bytes of an object.
func (e *evaluator) object(x operand) ([]byte, error) {
	size, err := sizeOf(x.typ)
	if err != nil {
		return nil, err
	}
	if size > maxValueBytes {
		return nil, fmt.Errorf("%s: %d bytes: %w; take an element or a member", typeText(x.typ), size, ErrTooLong)
	}
	return e.w.Bytes(x.addr, size), e.w.Err()
}

// node decodes a value of type t from data, which may be longer than the value.
func (r *valueReader) node(t cbtf.Type, data []byte, depth int) (Node, error) {
	if r.nodes++; r.nodes > maxValueNodes || depth > maxValueDepth {
		return Node{}, fmt.Errorf("%s: %w; take an element or a member", typeText(t), ErrTooLong)
	}
	size, err := sizeOf(t)
	if err != nil {
		return Node{}, err
	}
	if size > uint64(len(data)) {
		return Node{}, fmt.Errorf("%s: %d bytes of %d", typeText(t), len(data), size)
	}
	data = data[:size]
	switch u := cbtf.UnderlyingType(t).(type) {
	case *cbtf.Struct:
		return r.members(u.Members, data, depth)
	case *cbtf.Union:
		return r.members(u.Members, data, depth)
	case *cbtf.Array:
		return r.array(u, data, depth)
	case *cbtf.Pointer:
		return r.pointer(t, u, mem.Virt(little(data))), nil
	case *cbtf.Int:
		return integer(u, little(data)), nil
	case *cbtf.Enum:
		return enumerator(u, little(data)), nil
	}
	return Node{Scalar: "0x" + hex.EncodeToString(data)}, nil
}

// little returns up to 8 bytes as a number.
func little(data []byte) uint64 {
	var b [8]byte
	copy(b[:], data)
	return binary.LittleEndian.Uint64(b[:])
}

func (r *valueReader) members(members []cbtf.Member, data []byte, depth int) (Node, error) {
	out := Node{Fields: []NamedNode{}}
	for _, m := range members {
		at := uint64(m.Offset / 8)
		if at > uint64(len(data)) {
			return Node{}, fmt.Errorf("member %q lies outside its %d bytes", m.Name, len(data))
		}
		from := data[at:]
		if m.BitfieldSize > 0 {
			if m.Offset%8+m.BitfieldSize > 64 {
				return Node{}, fmt.Errorf("member %q: %d bits: %w", m.Name, m.BitfieldSize, ErrTooLong)
			}
			// Bit fields may share the last bytes of the struct with nothing.
			n := little(from) >> (m.Offset % 8) & (1<<m.BitfieldSize - 1)
			from = binary.LittleEndian.AppendUint64(nil, signExtend(m, n))
		}
		n, err := r.node(m.Type, from, depth+1)
		if err != nil {
			return Node{}, fmt.Errorf("%s: %w", m.Name, err)
		}
		if m.Name == "" {
			out.Fields = append(out.Fields, n.Fields...)
			continue
		}
		out.Fields = append(out.Fields, NamedNode{m.Name, n})
	}
	return out, nil
}

// signExtend widens a bit field of a signed type.
func signExtend(m cbtf.Member, n uint64) uint64 {
	signed := false
	switch u := cbtf.UnderlyingType(m.Type).(type) {
	case *cbtf.Int:
		signed = isSigned(u)
	case *cbtf.Enum:
		signed = u.Signed
	}
	if !signed {
		return n
	}
	shift := 64 - uint32(m.BitfieldSize)
	return uint64(int64(n<<shift) >> shift)
}

func (r *valueReader) array(u *cbtf.Array, data []byte, depth int) (Node, error) {
	if isChar(u.Type) {
		text, _, _ := bytes.Cut(data, []byte{0})
		return Node{Scalar: string(text)}, nil
	}
	size, err := sizeOf(u.Type)
	if err != nil {
		return Node{}, err
	}
	out := Node{Elems: []Node{}}
	for i := range uint64(u.Nelems) {
		n, err := r.node(u.Type, data[i*size:], depth+1)
		if err != nil {
			return Node{}, fmt.Errorf("[%d]: %w", i, err)
		}
		out.Elems = append(out.Elems, n)
	}
	return out, nil
}

func isChar(t cbtf.Type) bool {
	i, ok := cbtf.UnderlyingType(t).(*cbtf.Int)
	return ok && i.Name == "char"
}

// pointer notes what lies where a pointer leads: a string, or a symbol.
func (r *valueReader) pointer(t cbtf.Type, u *cbtf.Pointer, p mem.Virt) Node {
	n := Node{Scalar: p, cast: typeText(t)}
	if p == 0 {
		return n
	}
	if isChar(u.Target) {
		var text string
		// A string that cannot be read is left out: the pointer is the value.
		if err := r.w.Try(func() { text = r.w.String(p, maxValueText) }); err == nil {
			n.Note = strconv.Quote(text)
			return n
		}
	}
	if s, off, ok := r.w.View().Symbols().Symbolize(p); ok && p >= imageLow {
		n.Note = "<" + s.Name + ">"
		if off > 0 {
			n.Note = fmt.Sprintf("<%s+%#x>", s.Name, off)
		}
	}
	return n
}

// integer renders the number n of type u.
func integer(u *cbtf.Int, n uint64) Node {
	n = truncate(n, u.Size, isSigned(u))
	switch {
	case u.Encoding == cbtf.Bool:
		if n <= 1 {
			return Node{Scalar: n == 1}
		}
	case u.Name == "char":
		return Node{Scalar: int64(n), Note: strconv.QuoteRune(rune(byte(n)))}
	case isSigned(u):
		return Node{Scalar: int64(n)}
	}
	return Node{Scalar: n}
}

// enumerator renders an enum by name, or by number where no enumerator has it.
func enumerator(u *cbtf.Enum, n uint64) Node {
	n = truncate(n, u.Size, u.Signed)
	for _, v := range u.Values {
		if truncate(v.Value, u.Size, u.Signed) == n {
			return Node{Scalar: v.Name, cast: "enum"}
		}
	}
	if u.Signed {
		return Node{Scalar: int64(n)}
	}
	return Node{Scalar: n}
}
