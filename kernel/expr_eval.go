package kernel

import (
	"errors"
	"fmt"
	"strings"

	cbtf "github.com/cilium/ebpf/btf"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/mem"
)

// ErrNoTypeKnown is a symbol of which the kernel does not tell what it is.
var ErrNoTypeKnown = errors.New("its type is not known")

// operand is what a part of an expression stands for: an object in memory, or a
// number or pointer that is computed.
type operand struct {
	typ   cbtf.Type
	addr  mem.Virt // of an object
	isObj bool
	num   uint64 // otherwise
	bits  uint8  // width of a bit field, 0 of anything else
	shift uint8  // of a bit field, from addr on
}

type evaluator struct {
	w     *Walk
	types *btf.Types
}

func (e *evaluator) eval(n *exprNode) (operand, error) {
	switch n.op {
	case opName:
		return e.name(n.name)
	case opNumber:
		return operand{typ: e.base("unsigned long", 8), num: n.num}, nil
	case opPerCPU:
		return e.perCPU(n)
	}
	x, err := e.eval(n.x)
	if err != nil {
		return operand{}, err
	}
	switch n.op {
	case opMember:
		return e.member(x, n.name)
	case opDeref:
		return e.deref(x)
	case opAddr:
		if !x.isObj || x.bits > 0 {
			return operand{}, fmt.Errorf("&(%v): it has no address", n.x)
		}
		return operand{typ: &cbtf.Pointer{Target: x.typ}, num: uint64(x.addr)}, nil
	case opCast:
		return e.cast(x, n.name, int(n.num))
	case opNeg:
		num, err := e.number(x)
		return operand{typ: e.base("long", 8), num: -num}, err
	}
	y, err := e.eval(n.y)
	if err != nil {
		return operand{}, err
	}
	switch n.op {
	case opIndex:
		return e.index(x, y)
	case opSub:
		if y.num, err = e.number(y); err != nil {
			return operand{}, err
		}
		return e.add(x, operand{typ: y.typ, num: -y.num})
	}
	return e.add(x, y)
}

// base returns a base type, or one like it where the kernel names it differently.
func (e *evaluator) base(name string, size uint32) cbtf.Type {
	if t, err := e.types.Lookup(name); err == nil {
		return t
	}
	return &cbtf.Int{Name: name, Size: size}
}

// name returns the object that a symbol names.
func (e *evaluator) name(name string) (operand, error) {
	k := e.w.View().Kernel
	addr, err := k.Symbol(name)
	if err != nil {
		return operand{}, err
	}
	if perCPU, err := k.isPerCPU(addr); err != nil || perCPU {
		if err == nil {
			err = fmt.Errorf("symbol %q: each CPU has its own: per_cpu(%s, 0)", name, name)
		}
		return operand{}, err
	}
	t, err := e.variableType(name)
	return operand{typ: t, addr: addr, isObj: true}, err
}

// variableType returns the type of a variable, void when nothing tells it.
func (e *evaluator) variableType(name string) (cbtf.Type, error) {
	if t, err := e.types.Var(name); err == nil {
		return t, nil
	}
	if text, ok := globalTypes[name]; ok {
		return e.typeNamed(strings.TrimRight(text, "* "), strings.Count(text, "*"))
	}
	return &cbtf.Void{}, nil
}

// isPerCPU tells whether an address lies in the template of per-CPU variables
// (include/asm-generic/vmlinux.lds.h, PERCPU_VADDR). Up to 6.14 that begins at 0.
func (k *Kernel) isPerCPU(a mem.Virt) (bool, error) {
	start, err := k.Symbol("__per_cpu_start")
	if err != nil {
		return false, err
	}
	end, err := k.Symbol("__per_cpu_end")
	return err == nil && a >= start && a < end, err
}

// typeNamed returns the type C writes as name and stars.
func (e *evaluator) typeNamed(name string, stars int) (cbtf.Type, error) {
	var t cbtf.Type = &cbtf.Void{}
	if name != "void" {
		var err error
		if t, err = e.types.Lookup(canonicalInt(name)); err != nil {
			return nil, err
		}
	} else if stars == 0 {
		return nil, fmt.Errorf("type %q: nothing can be void", name)
	}
	for range stars {
		t = &cbtf.Pointer{Target: t}
	}
	return t, nil
}

// canonicalInt writes an integer type as compilers name it in debug information:
// "unsigned long" is "long unsigned int".
func canonicalInt(name string) string {
	count := make(map[string]int)
	for _, w := range strings.Fields(name) {
		switch w {
		case "long", "unsigned", "signed", "int", "short", "char":
			count[w]++
		default:
			return name
		}
	}
	out := "int"
	switch {
	case count["char"] > 0:
		return name // char, signed char and unsigned char are three types
	case count["short"] > 0:
		out = "short int"
		if count["unsigned"] > 0 {
			return "short unsigned int"
		}
	case count["long"] > 0:
		long := strings.TrimSpace(strings.Repeat("long ", count["long"]))
		if count["unsigned"] > 0 {
			return long + " unsigned int"
		}
		return long + " int"
	case count["unsigned"] > 0:
		out = "unsigned int"
	}
	return out
}

// member returns a member of a struct or union, or of what a pointer to one leads to.
func (e *evaluator) member(x operand, name string) (operand, error) {
	if _, ok := cbtf.UnderlyingType(x.typ).(*cbtf.Pointer); ok {
		var err error
		if x, err = e.deref(x); err != nil {
			return operand{}, err
		}
	}
	if _, void := cbtf.UnderlyingType(x.typ).(*cbtf.Void); void {
		return operand{}, fmt.Errorf("object at %v: %w: cast its address, as in ((struct foo *)&name)->%s", x.addr, ErrNoTypeKnown, name)
	}
	m, off, ok := btf.Member(x.typ, name)
	if !ok || !x.isObj {
		return operand{}, fmt.Errorf("%s: %w: %q", typeText(x.typ), btf.ErrNoField, name)
	}
	if off%8+uint32(m.BitfieldSize) > 64 {
		return operand{}, fmt.Errorf("%s.%s: %w: %d bits", typeText(x.typ), name, btf.ErrFormat, m.BitfieldSize)
	}
	return operand{typ: m.Type, addr: x.addr + mem.Virt(off/8), isObj: true,
		bits: uint8(m.BitfieldSize), shift: uint8(off % 8)}, nil
}

// deref returns what a pointer, or the first of what an array holds, leads to.
func (e *evaluator) deref(x operand) (operand, error) {
	switch t := cbtf.UnderlyingType(x.typ).(type) {
	case *cbtf.Array:
		if x.isObj {
			return operand{typ: t.Type, addr: x.addr, isObj: true}, nil
		}
	case *cbtf.Pointer:
		p, err := e.number(x)
		if err != nil {
			return operand{}, err
		}
		target, err := e.types.Complete(t.Target)
		return operand{typ: target, addr: mem.Virt(p), isObj: true}, err
	}
	return operand{}, fmt.Errorf("%s is no pointer", typeText(x.typ))
}

// number returns the value of an integer, enum or pointer; an array's is its address.
func (e *evaluator) number(x operand) (uint64, error) {
	if !x.isObj {
		return x.num, nil
	}
	f := btf.Field{Name: "value", Known: true, Bits: x.bits, BitOff: x.shift}
	switch t := cbtf.UnderlyingType(x.typ).(type) {
	case *cbtf.Array:
		return uint64(x.addr), nil
	case *cbtf.Pointer:
		f.Size = 8
	case *cbtf.Int:
		f.Size, f.Signed = t.Size, isSigned(t)
	case *cbtf.Enum:
		f.Size, f.Signed = t.Size, t.Signed
	case *cbtf.Void:
		return 0, fmt.Errorf("object at %v: %w: cast its address, as in *(unsigned long *)&name", x.addr, ErrNoTypeKnown)
	default:
		return 0, fmt.Errorf("%s is no number", typeText(x.typ))
	}
	n := e.w.Int(x.addr, f)
	return uint64(n), e.w.Err()
}

// index returns an element of an array, or the like behind a pointer.
func (e *evaluator) index(x, y operand) (operand, error) {
	i, err := e.number(y)
	if err != nil {
		return operand{}, err
	}
	a, ok := cbtf.UnderlyingType(x.typ).(*cbtf.Array)
	// Arrays of no or one element often stand for more, at the end of a struct.
	if ok && a.Nelems > 1 && i >= uint64(a.Nelems) {
		return operand{}, fmt.Errorf("element %d of %s", int64(i), typeText(x.typ))
	}
	first, err := e.deref(x)
	if err != nil {
		return operand{}, err
	}
	size, err := sizeOf(first.typ)
	if err != nil {
		return operand{}, err
	}
	first.addr += mem.Virt(i * size)
	return first, nil
}

func sizeOf(t cbtf.Type) (uint64, error) {
	n, err := cbtf.Sizeof(t)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s has no size", typeText(t))
	}
	return uint64(n), nil
}

// add adds numbers, or a number to a pointer.
func (e *evaluator) add(x, y operand) (operand, error) {
	a, err := e.number(x)
	if err != nil {
		return operand{}, err
	}
	b, err := e.number(y)
	if err != nil {
		return operand{}, err
	}
	if _, ok := cbtf.UnderlyingType(y.typ).(*cbtf.Pointer); ok {
		x, y, a, b = y, x, b, a
	}
	var target cbtf.Type
	switch t := cbtf.UnderlyingType(x.typ).(type) {
	case *cbtf.Pointer:
		if target, err = e.types.Complete(t.Target); err != nil {
			return operand{}, err
		}
	case *cbtf.Array:
		target = t.Type
	default:
		return operand{typ: e.base("long int", 8), num: a + b}, nil
	}
	if _, ok := cbtf.UnderlyingType(y.typ).(*cbtf.Pointer); ok {
		return operand{}, errors.New("two pointers cannot be added")
	}
	size := uint64(1) // of void
	if _, void := cbtf.UnderlyingType(target).(*cbtf.Void); !void {
		if size, err = sizeOf(target); err != nil {
			return operand{}, err
		}
	}
	return operand{typ: &cbtf.Pointer{Target: target}, num: a + b*size}, nil
}

// cast makes a number of another type of x.
func (e *evaluator) cast(x operand, name string, stars int) (operand, error) {
	t, err := e.typeNamed(name, stars)
	if err != nil {
		return operand{}, err
	}
	n, err := e.number(x)
	if err != nil {
		return operand{}, err
	}
	switch u := cbtf.UnderlyingType(t).(type) {
	case *cbtf.Pointer:
	case *cbtf.Int:
		n = truncate(n, u.Size, isSigned(u))
	case *cbtf.Enum:
		n = truncate(n, u.Size, u.Signed)
	default:
		return operand{}, fmt.Errorf("cast to %s: only to numbers and pointers; *(%s *)&… reads an object", typeText(t), typeText(t))
	}
	return operand{typ: t, num: n}, nil
}

// truncate keeps size bytes of n and extends their sign.
func truncate(n uint64, size uint32, signed bool) uint64 {
	if size == 0 || size >= 8 {
		return n
	}
	shift := 64 - 8*size
	if signed {
		return uint64(int64(n<<shift) >> shift)
	}
	return n << shift >> shift
}

// isSigned tells whether an integer is sign-extended. The BTF of 5.10 does not mark
// signed char as signed.
func isSigned(t *cbtf.Int) bool { return t.Encoding == cbtf.Signed || t.Name == "signed char" }

func typeText(t cbtf.Type) string { return btf.Decl(t, "") }
