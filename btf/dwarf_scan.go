package btf

import (
	"bytes"
	"fmt"
)

// DWARF tags, attributes and forms that the search for types knows (DWARF 5, 7.5).
const (
	tagEnum     = 0x04
	tagStruct   = 0x13
	tagTypedef  = 0x16
	tagUnion    = 0x17
	tagBase     = 0x24
	tagVariable = 0x34

	attrSibling     = 0x01
	attrName        = 0x03
	attrDeclaration = 0x3c
	attrStrOffsets  = 0x72 // DW_AT_str_offsets_base

	unitCompile, unitPartial = 1, 3

	formString        = 0x08
	formStrp          = 0x0e
	formRefAddr       = 0x10
	formIndirect      = 0x16
	formExprloc       = 0x18
	formFlagPresent   = 0x19
	formStrx          = 0x1a
	formStrx1         = 0x25
	formStrx2         = 0x26
	formStrx3         = 0x27
	formStrx4         = 0x28
	formLineStrp      = 0x1f
	formImplicitConst = 0x21
)

// tagKinds are the tags of what is looked up by name.
var tagKinds = map[uint64]uint8{
	tagStruct: kindStruct, tagUnion: kindUnion, tagEnum: kindEnum, tagTypedef: kindTypedef, tagBase: kindInt, tagVariable: kindVar,
}

// Limits on what a file can make the search do. Debian's 6.1 has 2,170 units, 319
// kinds of entries in one, and 41,286 names.
const (
	maxUnits      = 1 << 18
	maxAbbrevs    = 1 << 14 // kinds of entries in one unit
	maxAttributes = 1 << 16 // of all of these
	maxTypeNames  = 1 << 21 // types and variables
	maxNest       = 1 << 10 // entries in each other
)

// dwarfSections are the parts of a file's debugging information.
type dwarfSections struct {
	info, abbrev, str, lineStr, strOffsets []byte
}

type dwarfName struct {
	kind uint8
	name string
}

// scan finds the first complete definition of each name and kind outside functions.
// Half a gigabyte of file is gone through once, without decoding what is not a name.
type scan struct {
	dwarfSections
	found map[dwarfName]uint64 // offset in info
	seen  [8][]uint64          // by kind, bit n: the name at n in str was found

	units []unit // all of them, ascending
	table abbrevs
}

// abbrevs are the kinds of entries of a unit.
type abbrevs struct {
	at    uint64   // where they lie in .debug_abbrev
	kinds []abbrev // by code; 0 is none
	attrs []attr   // of all kinds
}

type abbrev struct {
	tag         uint64
	kind        uint8 // 0 when it has no name to be found by
	children    bool
	first, last uint32 // its attributes, the last not included
}

type attr struct {
	name, form uint16
	value      int64 // of form implicit_const
}

// unit is the header of a unit.
type unit struct {
	start, end uint64 // in info
	abbrevs    uint64 // in abbrev
	strOffsets uint64 // in strOffsets
	version    uint16
	addrSize   uint8
	wide       bool // offsets of 8 bytes
}

func dwarfError(at uint64, format string, args ...any) error {
	return fmt.Errorf("%w: DWARF at %#x: %s", ErrFormat, at, fmt.Sprintf(format, args...))
}

// run goes through all units.
func (s *scan) run() error {
	s.found = make(map[dwarfName]uint64)
	s.table.at = ^uint64(0)
	for i := range s.seen {
		s.seen[i] = make([]uint64, len(s.str)/64+1)
	}
	for at := uint64(0); at < uint64(len(s.info)); {
		c := cursor{data: s.info, at: at}
		u, types, err := s.header(&c)
		if err != nil {
			return err
		}
		if types {
			if u.abbrevs != s.table.at {
				if err := s.table.parse(s.abbrev, u.abbrevs); err != nil {
					return err
				}
			}
			c.data = s.info[:u.end]
			if err := s.unit(&c, &u); err != nil {
				return err
			}
		}
		if len(s.units) >= maxUnits {
			return dwarfError(at, "more than %d units", maxUnits)
		}
		s.units = append(s.units, u)
		at = u.end
	}
	return nil
}

// header reads a unit's header (DWARF 5, 7.5.1). types is false for units in which
// no types are looked for.
func (s *scan) header(c *cursor) (u unit, types bool, err error) {
	u.start = c.at
	n := c.fixed(4)
	if n == 0xffff_ffff {
		u.wide, n = true, c.fixed(8)
	}
	u.end = c.at + n
	if n > uint64(len(c.data)) || u.end > uint64(len(c.data)) {
		return u, false, dwarfError(u.start, "a unit of %d bytes", n)
	}
	u.version = uint16(c.fixed(2))
	types = true
	switch {
	case u.version >= 2 && u.version <= 4:
		u.abbrevs, u.addrSize = c.offset(&u), uint8(c.fixed(1))
	case u.version == 5:
		kind := c.fixed(1)
		u.addrSize, u.abbrevs = uint8(c.fixed(1)), c.offset(&u)
		types = kind == unitCompile || kind == unitPartial
	default:
		return u, false, dwarfError(u.start, "version %d", u.version)
	}
	if c.bad || u.addrSize == 0 || u.addrSize > 8 || u.end <= u.start {
		return u, false, dwarfError(u.start, "a unit's header")
	}
	return u, types, nil
}

// parse reads the kinds of entries at an offset of .debug_abbrev, over what t held.
func (t *abbrevs) parse(data []byte, at uint64) error {
	c := cursor{data: data, at: at}
	t.at, t.kinds, t.attrs = at, append(t.kinds[:0], abbrev{}), t.attrs[:0]
	for {
		start := c.at
		code := c.uleb()
		if code == 0 && !c.bad {
			return nil
		}
		if c.bad || code > maxAbbrevs {
			return dwarfError(start, "entry kind %d", code)
		}
		for uint64(len(t.kinds)) <= code {
			t.kinds = append(t.kinds, abbrev{})
		}
		a := &t.kinds[code]
		*a = abbrev{tag: c.uleb(), children: c.fixed(1) != 0, first: uint32(len(t.attrs))}
		a.kind = tagKinds[a.tag]
		if err := t.parseAttrs(&c); err != nil {
			return err
		}
		a.last = uint32(len(t.attrs))
	}
}

// parseAttrs reads the attributes of one kind of entry.
func (t *abbrevs) parseAttrs(c *cursor) error {
	for {
		start := c.at
		name, form := c.uleb(), c.uleb()
		value := int64(0)
		if form == formImplicitConst {
			value = c.sleb()
		}
		if c.bad || name > 0xffff || form > 0xffff || len(t.attrs) >= maxAttributes {
			return dwarfError(start, "attribute %d of an entry kind", len(t.attrs))
		}
		if name == 0 && form == 0 {
			return nil
		}
		t.attrs = append(t.attrs, attr{uint16(name), uint16(form), value})
	}
}

// kind returns the kind of entry that code stands for, nil when it is none.
func (t *abbrevs) kind(code uint64) *abbrev {
	if code >= uint64(len(t.kinds)) || t.kinds[code].tag == 0 {
		return nil
	}
	return &t.kinds[code]
}

// unit goes through a unit's entries. What is in a function is left out, and so is
// what is in a type.
func (s *scan) unit(c *cursor, u *unit) error {
	depth := 0
	for c.at < u.end {
		start := c.at
		code := c.uleb()
		if code == 0 {
			if depth--; depth <= 0 {
				return nil
			}
			continue
		}
		a := s.table.kind(code)
		if c.bad || a == nil {
			return dwarfError(start, "entry kind %d", code)
		}
		e := entryHead{}
		if err := e.read(c, u, s.table.attrs[a.first:a.last]); err != nil {
			return err
		}
		if depth == 0 {
			u.strOffsets = e.strOffsets
		}
		if depth == 1 && a.kind != 0 && !e.declared && e.named {
			if err := s.note(u, a.kind, e, start); err != nil {
				return err
			}
		}
		if !a.children {
			if depth == 0 {
				return nil
			}
			continue
		}
		if depth >= 1 && e.sibling > c.at && e.sibling <= u.end {
			c.at = e.sibling
			continue
		}
		if depth++; depth > maxNest {
			return dwarfError(start, "entries nested too deep")
		}
	}
	return nil
}

// entryHead is what the search wants of an entry.
type entryHead struct {
	name       nameRef
	named      bool
	declared   bool
	sibling    uint64
	strOffsets uint64
}

func (e *entryHead) read(c *cursor, u *unit, attrs []attr) error {
	for _, at := range attrs {
		start := c.at
		form := c.form(at.form)
		switch at.name {
		case attrName:
			e.named, e.name = true, c.name(u, form)
		case attrDeclaration:
			e.declared = form == formFlagPresent || c.number(u, form) != 0
		case attrSibling:
			e.sibling = c.number(u, form)
			if form != formRefAddr {
				e.sibling += u.start
			}
		case attrStrOffsets:
			e.strOffsets = c.number(u, form)
		default:
			c.skip(u, form)
		}
		if c.bad {
			return dwarfError(start, "attribute %#x of form %#x", at.name, at.form)
		}
	}
	return nil
}

// note records a definition unless there was one of that name.
func (s *scan) note(u *unit, kind uint8, e entryHead, at uint64) error {
	off, inStr := e.name.at, e.name.form == formStrp
	if inStr {
		if off >= uint64(len(s.str)) {
			return dwarfError(at, "a name at %#x", off)
		}
		bit := &s.seen[seenIndex(kind)][off/64]
		if *bit>>(off%64)&1 != 0 {
			return nil
		}
		*bit |= 1 << (off % 64)
	}
	text, err := s.text(u, e.name)
	if err != nil {
		return fmt.Errorf("entry at %#x: %w", at, err)
	}
	if len(text) == 0 {
		return nil
	}
	if _, ok := s.found[dwarfName{kind, string(text)}]; ok {
		return nil
	}
	if len(s.found) >= maxTypeNames {
		return dwarfError(at, "more than %d names", maxTypeNames)
	}
	s.found[dwarfName{kind, string(text)}] = at
	return nil
}

// text returns the name that n stands for, nothing for one in another file, as dwz
// leaves it, and for one that no type of a kernel has.
func (s *dwarfSections) text(u *unit, n nameRef) ([]byte, error) {
	table, off := s.str, n.at
	switch n.form {
	case formString:
		return n.inline, nil
	case formStrp:
	case formLineStrp:
		table = s.lineStr
	case formStrx, formStrx1, formStrx2, formStrx3, formStrx4:
		size := uint64(4)
		if u.wide {
			size = 8
		}
		if n.at > uint64(len(s.strOffsets)) {
			return nil, dwarfError(u.start, "name %d", n.at)
		}
		c := cursor{data: s.strOffsets, at: u.strOffsets + n.at*size}
		if off = c.fixed(int(size)); c.bad {
			return nil, dwarfError(u.start, "name %d", n.at)
		}
	default:
		return nil, nil
	}
	if off >= uint64(len(table)) {
		return nil, dwarfError(u.start, "a name at %#x", off)
	}
	text := table[off:min(uint64(len(table)), off+maxName+1)]
	n0 := bytes.IndexByte(text, 0)
	if n0 < 0 {
		return nil, nil // C++ and Rust have longer ones
	}
	return text[:n0], nil
}

// seenIndex numbers the kinds that names are kept of.
func seenIndex(kind uint8) int {
	switch kind {
	case kindStruct:
		return 0
	case kindUnion:
		return 1
	case kindEnum:
		return 2
	case kindTypedef:
		return 3
	case kindInt:
		return 4
	}
	return 5
}
