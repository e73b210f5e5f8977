package btf

import (
	"fmt"
	"io"
	"strings"

	cbtf "github.com/cilium/ebpf/btf"
)

// Bounds of what is printed of one type. A guest can make types nest and repeat
// without end.
const (
	maxPrintDepth  = 32
	maxPrintLines  = 1 << 14
	maxDeclTypes   = 128  // types that one declaration names
	maxDeclarators = 4096 // bytes of a declarator
)

// Entry is a member of a struct or union, or an enumerator, with its place.
type Entry struct {
	Name   string `json:"name"` // through anonymous members: the name in C; "" for those themselves
	Type   string `json:"type"`
	Offset uint32 `json:"offset"`     // bytes from the start of the whole
	Size   uint32 `json:"size"`       // bytes; of a bit field those of its type
	BitOff *uint8 `json:"bit_offset"` // of a bit field: from Offset on
	Bits   *uint8 `json:"bits"`       // of a bit field: its width
	Value  *int64 `json:"value"`      // of an enumerator
	Depth  int    `json:"depth"`      // anonymous structs and unions around it
}

// Decl returns t as C declares a thing of this type by the name inner, which may
// be empty: "struct list_head *next", "int (*fn)(void *)", "u8 [16]". Of a type that
// has no end only the beginning is told, and "…".
func Decl(t cbtf.Type, inner string) string {
	d := declarer{left: maxDeclTypes}
	return strings.TrimRight(d.decl(t, inner), " ")
}

// declarer bounds the types that one declaration names.
type declarer struct{ left int }

func (d *declarer) decl(t cbtf.Type, inner string) string {
	if d.left--; d.left < 0 || len(inner) > maxDeclarators {
		return "… " + inner
	}
	switch t := t.(type) {
	case *cbtf.Pointer:
		switch skipTags(t.Target).(type) {
		case *cbtf.Array, *cbtf.FuncProto:
			return d.decl(t.Target, "(*"+inner+")")
		}
		return d.decl(t.Target, "*"+inner)
	case *cbtf.Array:
		return d.decl(t.Type, fmt.Sprintf("%s[%d]", inner, t.Nelems))
	case *cbtf.FuncProto:
		return d.decl(t.Return, inner+"("+d.params(t)+")")
	case *cbtf.Const:
		return d.qualified("const", t.Type, inner)
	case *cbtf.Volatile:
		return d.qualified("volatile", t.Type, inner)
	case *cbtf.Restrict:
		return d.qualified("restrict", t.Type, inner)
	case *cbtf.TypeTag:
		return d.decl(t.Type, inner)
	}
	return baseName(t) + " " + inner
}

func (d *declarer) params(t *cbtf.FuncProto) string {
	var params []string
	for _, p := range t.Params {
		if d.left <= 0 {
			params = append(params, "…")
			break
		}
		params = append(params, strings.TrimRight(d.decl(p.Type, p.Name), " "))
	}
	return strings.Join(params, ", ")
}

// qualified puts a qualifier where C has it: behind the * of a pointer, before
// anything else.
func (d *declarer) qualified(q string, t cbtf.Type, inner string) string {
	if _, ok := skipTags(t).(*cbtf.Pointer); ok {
		return d.decl(t, q+" "+inner)
	}
	return q + " " + d.decl(t, inner)
}

func skipTags(t cbtf.Type) cbtf.Type {
	for range maxPrintDepth {
		tag, ok := t.(*cbtf.TypeTag)
		if !ok {
			break
		}
		t = tag.Type
	}
	return t
}

// baseName is a type's name with its keyword.
func baseName(t cbtf.Type) string {
	keyword := ""
	switch t := t.(type) {
	case nil, *cbtf.Void:
		return "void"
	case *cbtf.Struct:
		keyword = "struct"
	case *cbtf.Union:
		keyword = "union"
	case *cbtf.Enum:
		keyword = "enum"
	case *cbtf.Fwd:
		keyword = t.Kind.String()
	}
	name := t.TypeName()
	switch {
	case keyword == "":
		return name
	case name == "":
		return keyword + " {…}"
	}
	return keyword + " " + name
}

// Entries lists the members of what name stands for (see Lookup), anonymous structs
// and unions followed by what is in them, or the enumerators of an enum.
func (t *Types) Entries(name string) (es []Entry, err error) {
	defer recoverFormat(name, &es, &err)
	typ, err := t.Lookup(name)
	if err != nil {
		return nil, err
	}
	switch u := cbtf.UnderlyingType(typ).(type) {
	case *cbtf.Struct:
		err = entries(&es, u.Members, 0, 0)
	case *cbtf.Union:
		err = entries(&es, u.Members, 0, 0)
	case *cbtf.Enum:
		for _, v := range u.Values {
			value := int64(v.Value)
			es = append(es, Entry{Name: v.Name, Type: baseName(u), Size: u.Size, Value: &value})
		}
	default:
		return nil, fmt.Errorf("type %q: %s has no members", name, Decl(typ, ""))
	}
	if err != nil {
		return nil, fmt.Errorf("type %q: %w", name, err)
	}
	return es, nil
}

// recoverFormat turns a panic of the library over what a guest wrote into an error.
func recoverFormat[T any](name string, out *T, err *error) {
	if p := recover(); p != nil {
		var zero T
		*out, *err = zero, fmt.Errorf("type %q: %w: %v", name, ErrFormat, p)
	}
}

// entries appends members that begin base bits into the whole.
func entries(es *[]Entry, members []cbtf.Member, base uint32, depth int) error {
	if depth > maxPrintDepth {
		return fmt.Errorf("%w: nested too deep", ErrFormat)
	}
	for _, m := range members {
		if len(*es) >= maxPrintLines {
			return fmt.Errorf("%w: more than %d members", ErrFormat, maxPrintLines)
		}
		bits := base + uint32(m.Offset)
		size, err := cbtf.Sizeof(m.Type)
		if err != nil {
			return fmt.Errorf("member %q: %w: %w", m.Name, ErrFormat, err)
		}
		e := Entry{Name: m.Name, Type: Decl(m.Type, ""), Offset: bits / 8, Size: uint32(size), Depth: depth}
		if m.BitfieldSize > 0 {
			at, width := uint8(bits%8), uint8(m.BitfieldSize)
			e.BitOff, e.Bits = &at, &width
		}
		*es = append(*es, e)
		if inner := anonymous(m); inner != nil {
			if err := entries(es, inner, bits, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// anonymous returns the members of a member that is a struct or union without a
// type name; what they are is told nowhere else.
func anonymous(m cbtf.Member) []cbtf.Member {
	switch u := cbtf.UnderlyingType(m.Type).(type) {
	case *cbtf.Struct:
		if u.Name == "" {
			return u.Members
		}
	case *cbtf.Union:
		if u.Name == "" {
			return u.Members
		}
	}
	return nil
}

// Print writes what name stands for (see Lookup) as C declares it, with the offset
// and size of each member, in bytes, as pahole does. Names are the guest's words.
func (t *Types) Print(w io.Writer, name string) (err error) {
	var none struct{}
	defer recoverFormat(name, &none, &err)
	typ, err := t.Lookup(name)
	if err != nil {
		return err
	}
	p := printer{w: w}
	switch u := typ.(type) {
	case *cbtf.Struct:
		p.composite("struct "+u.Name, u.Members, 0, 0, "};")
		p.line("/* size: %d, members: %d */", u.Size, len(u.Members))
	case *cbtf.Union:
		p.composite("union "+u.Name, u.Members, 0, 0, "};")
		p.line("/* size: %d, members: %d */", u.Size, len(u.Members))
	case *cbtf.Enum:
		p.enum(u)
	case *cbtf.Typedef:
		if inner := anonymous(cbtf.Member{Type: u.Type}); inner != nil {
			keyword, _ := compositeKind(u.Type)
			p.composite("typedef "+keyword, inner, 0, 0, "} "+u.Name+";")
		} else {
			p.line("typedef %s;", Decl(u.Type, u.Name))
		}
		if size, err := cbtf.Sizeof(u); err == nil {
			p.line("/* size: %d */", size)
		}
	case *cbtf.Int:
		p.line("%s", u.Name)
		p.line("/* size: %d, %s */", u.Size, u.Encoding)
	default:
		p.line("%s;", Decl(typ, ""))
	}
	if p.err != nil {
		return fmt.Errorf("print type %q: %w", name, p.err)
	}
	return nil
}

// printer writes lines until the first error.
type printer struct {
	w     io.Writer
	lines int
	err   error
}

func (p *printer) line(format string, args ...any) {
	if p.lines++; p.lines > maxPrintLines && p.err == nil {
		p.err = fmt.Errorf("%w: more than %d lines", ErrFormat, maxPrintLines)
	}
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// composite prints a struct or union whose members begin base bits into the whole;
// tail is its last line.
func (p *printer) composite(head string, members []cbtf.Member, base uint32, depth int, tail string) {
	if depth > maxPrintDepth {
		p.err = fmt.Errorf("%w: nested too deep", ErrFormat)
		return
	}
	margin := strings.Repeat("    ", depth)
	p.line("%s%s {", margin, strings.TrimRight(head, " "))
	for _, m := range members {
		bits := base + uint32(m.Offset)
		size, err := cbtf.Sizeof(m.Type)
		if err != nil {
			p.err = fmt.Errorf("member %q: %w: %w", m.Name, ErrFormat, err)
			return
		}
		place := fmt.Sprintf("/* %6d %5d */", bits/8, size)
		if m.BitfieldSize > 0 {
			place = fmt.Sprintf("/* %6d:%2d %5d */", bits/8, bits%8, size)
		}
		column := max(56-4*depth, 1)
		if kind, direct := compositeKind(m.Type); direct && p.err == nil {
			if inner := anonymous(m); inner != nil {
				end := strings.TrimRight("} "+m.Name, " ") + ";"
				p.composite(kind, inner, bits, depth+1, fmt.Sprintf("%-*s %s", column, end, place))
				continue
			}
		}
		text := Decl(m.Type, m.Name)
		if m.BitfieldSize > 0 {
			text += fmt.Sprintf(":%d", m.BitfieldSize)
		}
		p.line("%s    %-*s %s", margin, column, text+";", place)
	}
	p.line("%s%s", margin, tail)
}

// compositeKind tells whether t itself, not a typedef of it, is a struct or union.
func compositeKind(t cbtf.Type) (keyword string, ok bool) {
	switch t.(type) {
	case *cbtf.Struct:
		return "struct", true
	case *cbtf.Union:
		return "union", true
	}
	return "", false
}

func (p *printer) enum(u *cbtf.Enum) {
	p.line("%s {", strings.TrimRight("enum "+u.Name, " "))
	for _, v := range u.Values {
		if u.Signed {
			p.line("    %s = %d,", v.Name, int64(v.Value))
		} else {
			p.line("    %s = %d,", v.Name, v.Value)
		}
	}
	p.line("};")
	p.line("/* size: %d, enumerators: %d */", u.Size, len(u.Values))
}
