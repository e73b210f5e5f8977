package ksym

import (
	"encoding/binary"
	"fmt"

	"github.com/umbravm/umbra/mem"
)

// Encoding is how a kernel stores its symbols' addresses, newest first.
type Encoding uint8

const (
	// PCRelative: 32-bit offsets, each from its own place in memory (7.0 on, where
	// kallsyms_relative_base is gone).
	PCRelative Encoding = iota + 1
	// BaseRelative: unsigned 32-bit offsets from kallsyms_relative_base (x86-64
	// from 6.15 on, when per-CPU symbols got ordinary addresses).
	BaseRelative
	// PercpuAbsolute: offsets that are not negative are per-CPU or absolute values
	// themselves, negative ones count down from kallsyms_relative_base - 1
	// (CONFIG_KALLSYMS_ABSOLUTE_PERCPU, SMP kernels up to 6.14).
	PercpuAbsolute
	// Plain: 64-bit addresses (without CONFIG_KALLSYMS_BASE_RELATIVE, up to 6.4).
	Plain
)

func (e Encoding) String() string {
	switch e {
	case PCRelative:
		return "relative to themselves"
	case BaseRelative:
		return "relative to a base"
	case PercpuAbsolute:
		return "relative to a base, per-CPU absolute"
	case Plain:
		return "addresses"
	}
	return fmt.Sprintf("encoding %d", uint8(e))
}

// width is the bytes one address takes up.
func (e Encoding) width() uint64 {
	if e == Plain {
		return 8
	}
	return 4
}

// kernelHalf is the lowest address of the upper half. Absolute symbols lie below.
const kernelHalf mem.Virt = 0xffff_8000_0000_0000

// addresses is a table of symbol addresses as it lies in memory.
type addresses struct {
	encoding Encoding
	raw      []byte
	at       mem.Virt // where raw lies (PCRelative)
	relative mem.Virt // kallsyms_relative_base (BaseRelative, PercpuAbsolute)
	first    int      // the first symbol with an address in the image
	slide    mem.Virt // added to addresses in the image
}

func (a *addresses) len() int { return len(a.raw) / int(a.encoding.width()) }

// get returns the address of symbol i.
func (a *addresses) get(i int) mem.Virt {
	if i < a.first {
		return a.decode(i)
	}
	return a.decode(i) + a.slide
}

// decode returns address i as the kernel stores it (kallsyms_sym_address).
func (a *addresses) decode(i int) mem.Virt {
	if a.encoding == Plain {
		return mem.Virt(binary.LittleEndian.Uint64(a.raw[8*i:]))
	}
	off := binary.LittleEndian.Uint32(a.raw[4*i:])
	signed := mem.Virt(int64(int32(off)))
	switch {
	case a.encoding == PCRelative:
		return a.at + mem.Virt(4*i) + signed
	case a.encoding == BaseRelative:
		return a.relative + mem.Virt(off)
	case int32(off) >= 0:
		return mem.Virt(off)
	default:
		return a.relative - 1 - signed
	}
}

// readTail reads the last of n addresses that begin at a.at. They tell what is no
// table of addresses at little cost, and one encoding from another: the last
// symbol is in the image, which is a negative offset only where per-CPU ones are
// absolute.
func (a *addresses) readTail(v view, n uint32) error {
	k, w := min(n, 512), a.encoding.width()
	a.at += mem.Virt(uint64(n-k) * w)
	a.raw = make([]byte, uint64(k)*w)
	if err := v.read(a.raw, a.at); err != nil {
		return malformed("addresses: %w", err)
	}
	if a.encoding == BaseRelative && a.raw[len(a.raw)-1]&0x80 != 0 {
		a.encoding = PercpuAbsolute
	}
	for i := 1; i < int(k); i++ {
		if prev, addr := a.decode(i-1), a.decode(i); addr < prev {
			return malformed("of the last symbols one at %v comes after one at %v", addr, prev)
		}
	}
	return nil
}

// check proves the table: absolute symbols first, then addresses in the image,
// both ascending, and the tables themselves, from lo to hi, among the latter.
// That tells the encodings apart, too: read as another, a table does not ascend
// or does not enclose itself.
func (a *addresses) check(v view, lo, hi mem.Virt) error {
	n := a.len()
	prev := mem.Virt(0)
	a.first = n
	for i := range n {
		addr := a.decode(i)
		if addr < prev {
			return malformed("symbol %d at %v lies below symbol %d at %v", i, addr, i-1, prev)
		}
		if a.first == n && addr >= kernelHalf {
			a.first = i
		}
		prev = addr
	}
	if a.first == n {
		return malformed("none of %d symbols lies in the kernel", n)
	}
	low := a.decode(a.first)
	switch {
	case low < v.base:
		return malformed("symbol %d at %v lies below the kernel image at %v", a.first, low, v.base)
	case prev-low > maxImageBytes:
		return malformed("symbols from %v to %v", low, prev)
	case lo < low || hi > prev:
		return malformed("symbols from %v to %v leave out their own tables from %v to %v", low, prev, lo, hi)
	}
	return nil
}
