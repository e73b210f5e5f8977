package btf

import (
	"fmt"
	"sort"

	cbtf "github.com/cilium/ebpf/btf"
)

// Tags and attributes that types are made of (DWARF 5, 7.5.3 and 7.5.4).
const (
	tagArray       = 0x01
	tagParameter   = 0x05
	tagMember      = 0x0d
	tagPointer     = 0x0f
	tagSubroutine  = 0x15
	tagSubrange    = 0x21
	tagConst       = 0x26
	tagEnumerator  = 0x28
	tagVolatile    = 0x35
	tagRestrict    = 0x37
	tagUnspecified = 0x3b
	tagAtomic      = 0x47

	attrByteSize      = 0x0b
	attrBitOffset     = 0x0c // until DWARF 3: from the storage's high end
	attrBitSize       = 0x0d
	attrConstValue    = 0x1c
	attrUpperBound    = 0x2f
	attrCount         = 0x37
	attrPlace         = 0x38 // DW_AT_data_member_location
	attrEncoding      = 0x3e
	attrType          = 0x49
	attrDataBitOffset = 0x6b

	encodingBoolean = 2
	encodingFloat   = 4
	encodingSigned  = 5
	encodingChar    = 6 // DW_ATE_signed_char

	opPlusConst = 0x23 // DW_OP_plus_uconst

	maxDimensions = 16 // of an array
)

// entry is an entry with the attributes that matter to types.
type entry struct {
	at       uint64 // in info
	tag      uint64
	children bool
	declared bool
	computed bool // its place is an expression
	name     string
	values   map[uint16]int64
}

func (e *entry) has(attr uint16) bool { _, ok := e.values[attr]; return ok }

// size returns an entry's size in bytes, and false when it has none that can be.
func (e *entry) size() (uint32, bool) {
	n, ok := e.values[attrByteSize]
	return uint32(n), ok && n >= 0 && n <= maxBytes
}

// entryReader reads entries of one unit, one after the other.
type entryReader struct {
	cursor
	unit  *unit
	table *abbrevs
	names *dwarfSections
}

// entriesAt returns the entries from an offset in info on.
func (d *debugInfo) entriesAt(at uint64) (*entryReader, error) {
	i := sort.Search(len(d.units), func(i int) bool { return d.units[i].end > at })
	if i == len(d.units) || at <= d.units[i].start {
		return nil, dwarfError(at, "no unit")
	}
	u := &d.units[i]
	t, ok := d.tables[u.abbrevs]
	if !ok {
		t = &abbrevs{}
		if err := t.parse(d.sections.abbrev, u.abbrevs); err != nil {
			return nil, err
		}
		if len(d.tables) >= maxTables {
			clear(d.tables)
		}
		d.tables[u.abbrevs] = t
	}
	return &entryReader{cursor{data: d.sections.info[:u.end], at: at}, u, t, &d.sections}, nil
}

// next reads an entry; nil ends a list of children.
func (r *entryReader) next() (*entry, error) {
	start := r.at
	code := r.uleb()
	if code == 0 && !r.bad {
		return nil, nil
	}
	a := r.table.kind(code)
	if r.bad || a == nil {
		return nil, dwarfError(start, "entry kind %d", code)
	}
	e := &entry{at: start, tag: a.tag, children: a.children, values: make(map[uint16]int64)}
	for _, at := range r.table.attrs[a.first:a.last] {
		if err := r.attribute(e, at); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (r *entryReader) attribute(e *entry, at attr) error {
	form := r.form(at.form)
	switch at.name {
	case attrName:
		text, err := r.names.text(r.unit, r.cursor.name(r.unit, form))
		if err != nil {
			return err
		}
		e.name = string(text)
	case attrDeclaration:
		e.declared = form == formFlagPresent || r.number(r.unit, form) != 0
	case attrType, attrSibling:
		n := r.number(r.unit, form)
		if form != formRefAddr {
			n += r.unit.start
		}
		e.values[at.name] = int64(n)
	case attrByteSize, attrBitOffset, attrBitSize, attrConstValue, attrUpperBound, attrCount, attrPlace, attrEncoding, attrDataBitOffset:
		r.constant(e, at, form)
	default:
		r.skip(r.unit, form)
	}
	if r.bad {
		return dwarfError(e.at, "attribute %#x of form %#x", at.name, at.form)
	}
	return nil
}

// constant reads an attribute that is a number. One that is computed has no value
// here, but for a place in the form of DWARF 2.
func (r *entryReader) constant(e *entry, at attr, form uint16) {
	switch form {
	case formImplicitConst:
		e.values[at.name] = at.value
	case 0x0d: // sdata
		e.values[at.name] = r.sleb()
	case 0x05, 0x06, 0x07, 0x0b, 0x0f, 0x17: // data2, data4, data8, data1, udata, sec_offset
		e.values[at.name] = int64(r.number(r.unit, form))
	case 0x03, 0x04, 0x09, 0x0a, formExprloc:
		x := cursor{data: r.block(form)}
		if op, n := x.fixed(1), x.uleb(); at.name == attrPlace && op == opPlusConst && !x.bad && x.at == uint64(len(x.data)) {
			e.values[at.name] = int64(n)
			return
		}
		e.computed = e.computed || at.name == attrPlace
	default:
		e.computed = e.computed || at.name == attrPlace
		r.skip(r.unit, form)
	}
}

// children calls f for each entry directly below e, which r stands behind.
func (d *debugInfo) children(r *entryReader, e *entry, f func(c *entry) error) error {
	if !e.children {
		return nil
	}
	for depth := 1; depth > 0; {
		c, err := r.next()
		switch {
		case err != nil:
			return err
		case c == nil:
			depth--
			continue
		}
		if err := d.spend(1); err != nil {
			return err
		}
		if depth == 1 {
			if err := f(c); err != nil {
				return err
			}
		}
		if !c.children {
			continue
		}
		if s := uint64(c.values[attrSibling]); s > r.at && s <= r.unit.end {
			r.at = s
			continue
		}
		if depth++; depth > maxNest {
			return dwarfError(c.at, "entries nested too deep")
		}
	}
	return nil
}

// read implements reader.
func (d *debugInfo) read(handle uint64, ref bool, depth int) (cbtf.Type, error) {
	r, err := d.entriesAt(handle)
	if err != nil {
		return nil, err
	}
	e, err := r.next()
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, dwarfError(handle, "no entry")
	}
	t, err := d.build(r, e, ref, depth)
	if err != nil {
		if e.name != "" {
			err = fmt.Errorf("type %q: %w", e.name, err)
		}
		return nil, err
	}
	return t, nil
}

// inner decodes the type an entry refers to, void when it refers to none.
func (d *debugInfo) inner(e *entry, ref bool, depth int) (cbtf.Type, error) {
	if !e.has(attrType) {
		return &cbtf.Void{}, nil
	}
	return d.typ(d, uint64(e.values[attrType]), ref, depth)
}

// build makes a type of an entry; r stands behind it.
func (d *debugInfo) build(r *entryReader, e *entry, ref bool, depth int) (cbtf.Type, error) {
	switch e.tag {
	case tagBase:
		return baseType(e)
	case tagUnspecified:
		return &cbtf.Void{}, nil
	case tagStruct, tagUnion:
		if e.declared {
			f := &cbtf.Fwd{Name: e.name, Kind: cbtf.FwdStruct}
			if e.tag == tagUnion {
				f.Kind = cbtf.FwdUnion
			}
			return f, nil
		}
		if ref {
			return d.forward(e.at, e.name, e.tag == tagUnion), nil
		}
		return d.composite(r, e, depth)
	case tagEnum:
		return d.enum(r, e)
	case tagArray:
		return d.array(r, e, ref, depth)
	case tagSubroutine:
		return d.function(r, e, depth)
	case tagPointer:
		t, err := d.inner(e, true, depth)
		return &cbtf.Pointer{Target: t}, err
	}
	t, err := d.inner(e, ref, depth)
	if err != nil {
		return nil, err
	}
	switch e.tag {
	case tagTypedef:
		return &cbtf.Typedef{Name: e.name, Type: t}, nil
	case tagConst:
		return &cbtf.Const{Type: t}, nil
	case tagVolatile:
		return &cbtf.Volatile{Type: t}, nil
	case tagRestrict:
		return &cbtf.Restrict{Type: t}, nil
	case tagAtomic:
		return t, nil
	case tagVariable:
		return &cbtf.Var{Name: e.name, Type: t}, nil
	}
	return nil, dwarfError(e.at, "tag %#x is none of an object", e.tag)
}

func baseType(e *entry) (cbtf.Type, error) {
	size, ok := e.size()
	if !ok || size == 0 || size > 32 {
		return nil, dwarfError(e.at, "base type %q has no size", e.name)
	}
	t := &cbtf.Int{Name: e.name, Size: size}
	switch e.values[attrEncoding] {
	case encodingFloat:
		return &cbtf.Float{Name: e.name, Size: size}, nil
	case encodingBoolean:
		t.Encoding = cbtf.Bool
	case encodingSigned, encodingChar:
		t.Encoding = cbtf.Signed
	}
	return t, nil
}

func (d *debugInfo) composite(r *entryReader, e *entry, depth int) (cbtf.Type, error) {
	size, ok := e.size()
	if !ok {
		return nil, dwarfError(e.at, "no size")
	}
	var members []cbtf.Member
	err := d.children(r, e, func(c *entry) error {
		if c.tag != tagMember {
			return nil
		}
		t, err := d.inner(c, false, depth)
		if err == nil {
			var m cbtf.Member
			m, err = placed(c, t)
			members = append(members, m)
		}
		if err != nil {
			return fmt.Errorf("member %q: %w", c.name, err)
		}
		return nil
	})
	if err == nil {
		err = checked(e.name, size, members)
	}
	if err != nil {
		return nil, err
	}
	if e.tag == tagUnion {
		return &cbtf.Union{Name: e.name, Size: size, Members: members}, nil
	}
	return &cbtf.Struct{Name: e.name, Size: size, Members: members}, nil
}

// placed returns a member of type t (DWARF 5, 5.7.6). One of a union has no place.
func placed(e *entry, t cbtf.Type) (m cbtf.Member, err error) {
	m = cbtf.Member{Name: e.name, Type: t}
	bytes, width := e.values[attrPlace], e.values[attrBitSize]
	if e.computed || bytes < 0 || bytes > maxBytes/8 || width < 0 || width > 255 {
		return m, dwarfError(e.at, "a member's place")
	}
	bits := bytes * 8
	m.BitfieldSize = cbtf.Bits(width)
	switch {
	case width == 0:
	case e.has(attrDataBitOffset): // since DWARF 4
		bits = e.values[attrDataBitOffset]
	case e.has(attrBitOffset):
		storage, ok := e.size()
		if !ok {
			if storage, err = sizeOf(t); err != nil {
				return m, err
			}
		}
		bits += int64(storage)*8 - e.values[attrBitOffset] - width
	}
	if bits < 0 || bits > maxBytes {
		return m, dwarfError(e.at, "a member %d bits into its struct", bits)
	}
	m.Offset = cbtf.Bits(bits)
	return m, nil
}

func (d *debugInfo) enum(r *entryReader, e *entry) (cbtf.Type, error) {
	if e.declared {
		return &cbtf.Enum{Name: e.name}, nil // no size: only a parameter can be of it
	}
	size, ok := e.size()
	if !ok || size != 1 && size != 2 && size != 4 && size != 8 {
		return nil, dwarfError(e.at, "an enum of %d bytes", size)
	}
	t := &cbtf.Enum{Name: e.name, Size: size}
	err := d.children(r, e, func(c *entry) error {
		if c.tag != tagEnumerator {
			return nil
		}
		if !c.has(attrConstValue) {
			return dwarfError(c.at, "enumerator %q has no value", c.name)
		}
		v := c.values[attrConstValue]
		t.Signed = t.Signed || v < 0 && size < 8
		t.Values = append(t.Values, cbtf.EnumValue{Name: c.name, Value: uint64(v)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// array makes an array of each of its dimensions, the last one innermost.
func (d *debugInfo) array(r *entryReader, e *entry, ref bool, depth int) (cbtf.Type, error) {
	var counts []uint32
	err := d.children(r, e, func(c *entry) error {
		if c.tag != tagSubrange {
			return nil
		}
		n := c.values[attrCount] // 0 when it is as long as it likes
		if c.has(attrUpperBound) {
			n = c.values[attrUpperBound] + 1
		}
		if n == 1<<32 { // -1 written as a number of 4 bytes
			n = 0
		}
		if n < 0 || n > maxBytes || len(counts) == maxDimensions {
			return dwarfError(c.at, "an array of %d elements, %d dimensions", n, len(counts)+1)
		}
		counts = append(counts, uint32(n))
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(counts) == 0 {
		return nil, dwarfError(e.at, "an array without dimensions")
	}
	t, err := d.inner(e, ref, depth)
	if err != nil {
		return nil, err
	}
	for i := len(counts) - 1; i >= 0; i-- {
		t = &cbtf.Array{Type: t, Nelems: counts[i]}
	}
	return t, nil
}

func (d *debugInfo) function(r *entryReader, e *entry, depth int) (cbtf.Type, error) {
	f := &cbtf.FuncProto{}
	err := d.children(r, e, func(c *entry) error {
		var t cbtf.Type = &cbtf.Void{} // "..."
		if c.tag == tagParameter {
			var err error
			if t, err = d.inner(c, true, depth); err != nil {
				return err
			}
		}
		f.Params = append(f.Params, cbtf.FuncParam{Name: c.name, Type: t})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if f.Return, err = d.inner(e, true, depth); err != nil {
		return nil, err
	}
	return f, nil
}
