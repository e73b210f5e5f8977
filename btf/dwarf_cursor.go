package btf

import (
	"bytes"
	"encoding/binary"
)

// cursor reads forward. What runs past the end sets bad and reads as 0.
type cursor struct {
	data []byte
	at   uint64
	bad  bool
}

func (c *cursor) take(n uint64) []byte {
	if c.at > uint64(len(c.data)) || n > uint64(len(c.data))-c.at {
		c.bad = true
		return nil
	}
	b := c.data[c.at : c.at+n]
	c.at += n
	return b
}

func (c *cursor) fixed(n int) uint64 {
	b := c.take(uint64(n))
	switch {
	case b == nil:
		return 0
	case n == 4:
		return uint64(binary.LittleEndian.Uint32(b))
	case n == 1:
		return uint64(b[0])
	case n == 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case n == 8:
		return binary.LittleEndian.Uint64(b)
	}
	v := uint64(0)
	for i, x := range b {
		v |= uint64(x) << (8 * i)
	}
	return v
}

func (c *cursor) offset(u *unit) uint64 {
	if u.wide {
		return c.fixed(8)
	}
	return c.fixed(4)
}

func (c *cursor) uleb() uint64 {
	v := uint64(0)
	for shift := uint(0); shift < 70; shift += 7 {
		if c.at >= uint64(len(c.data)) {
			break
		}
		b := c.data[c.at]
		c.at++
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	c.bad = true
	return 0
}

func (c *cursor) sleb() int64 {
	v := int64(0)
	for shift := uint(0); shift < 70; shift += 7 {
		if c.at >= uint64(len(c.data)) {
			break
		}
		b := c.data[c.at]
		c.at++
		v |= int64(b&0x7f) << shift
		if b < 0x80 {
			if b&0x40 != 0 && shift < 57 {
				v |= -1 << (shift + 7)
			}
			return v
		}
	}
	c.bad = true
	return 0
}

// form returns an attribute's form, which can stand before its value.
func (c *cursor) form(f uint16) uint16 {
	for range 4 {
		if f != formIndirect {
			return f
		}
		n := c.uleb()
		if n > 0xffff || n == formImplicitConst {
			break
		}
		f = uint16(n)
	}
	c.bad = true
	return 0
}

// nameRef is a name as an entry has it.
type nameRef struct {
	form   uint16
	at     uint64 // offset or index, as the form says
	inline []byte // in form string
}

func (c *cursor) name(u *unit, form uint16) nameRef {
	if form == formString {
		return nameRef{form: form, inline: c.text()}
	}
	return nameRef{form: form, at: c.number(u, form)}
}

// block returns the bytes of an expression or block.
func (c *cursor) block(form uint16) []byte {
	switch form {
	case 0x0a: // block1
		return c.take(c.fixed(1))
	case 0x03: // block2
		return c.take(c.fixed(2))
	case 0x04: // block4
		return c.take(c.fixed(4))
	case 0x09, formExprloc:
		return c.take(c.uleb())
	}
	return nil
}

// text reads a name that ends with a zero.
func (c *cursor) text() []byte {
	if c.at < uint64(len(c.data)) {
		if n := bytes.IndexByte(c.data[c.at:], 0); n >= 0 {
			b := c.take(uint64(n) + 1)
			return b[:n]
		}
	}
	c.bad = true
	return nil
}

// formSizes are the bytes of the forms that always have the same (DWARF 5, 7.5.6).
var formSizes = [0x2d]uint8{
	0x05: 2, 0x06: 4, 0x07: 8, 0x0b: 1, 0x0c: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x1c: 4, 0x1e: 16,
	0x20: 8, 0x24: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2a: 2, 0x2b: 3, 0x2c: 4,
}

// number reads an attribute that is a number, an offset or a reference; of one that
// is not it reads past.
func (c *cursor) number(u *unit, form uint16) uint64 {
	switch {
	case int(form) < len(formSizes) && formSizes[form] > 0 && formSizes[form] <= 8:
		return c.fixed(int(formSizes[form]))
	case form == formStrp || form == 0x17 || form == 0x1d || form == formLineStrp || form == formRefAddr && u.version > 2:
		return c.offset(u)
	case form == 0x0f || form == 0x15 || form == formStrx || form == 0x1b || form == 0x22 || form == 0x23:
		return c.uleb()
	}
	c.skip(u, form)
	return 0
}

// skip reads past an attribute.
func (c *cursor) skip(u *unit, form uint16) {
	if int(form) < len(formSizes) && formSizes[form] > 0 {
		c.take(uint64(formSizes[form]))
		return
	}
	switch form {
	case 0x01: // addr
		c.take(uint64(u.addrSize))
	case formRefAddr:
		if u.version == 2 {
			c.take(uint64(u.addrSize))
			return
		}
		c.offset(u)
	case formStrp, 0x17, 0x1d, formLineStrp, 0x1f20, 0x1f21: // and sec_offset, strp_sup, GNU's two
		c.offset(u)
	case 0x0d, 0x0f, 0x15, formStrx, 0x1b, 0x22, 0x23: // LEB128 numbers
		c.uleb()
	case formString:
		c.text()
	case 0x03, 0x04, 0x09, 0x0a, formExprloc:
		c.block(form)
	case formFlagPresent, formImplicitConst:
	default:
		c.bad = true
	}
}
