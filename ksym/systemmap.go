package ksym

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/umbravm/umbra/mem"
)

// errNoSymbols says that a symbol map names nothing in the kernel.
var errNoSymbols = errors.New("no symbol of a kernel in it")

// ReadSystemMap reads a kernel's System.map, or a /proc/kallsyms of its, whose
// modules are left out: lines of a hexadecimal address, a type letter and a name.
// A System.map has the addresses the kernel was linked at; see Slide.
func ReadSystemMap(r io.Reader) (*Table, error) {
	var b builder
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 4<<10), 4<<10)
	for n := 1; in.Scan(); n++ {
		addr, name, err := mapLine(in.Bytes())
		if err == nil && name != nil {
			err = b.add(addr, name)
		}
		if err != nil {
			return nil, fmt.Errorf("symbol map, line %d: %w", n, err)
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("symbol map: %w", err)
	}
	t, err := b.table()
	if err != nil {
		return nil, fmt.Errorf("symbol map: %w", err)
	}
	return t, nil
}

// builder makes a table of symbols that come in any order.
type builder struct {
	lines []builtSymbol
	names []byte
}

type builtSymbol struct {
	addr       mem.Virt
	start, end int // of its entry in names
}

// add adds a symbol; name has its type letter before it.
func (b *builder) add(addr mem.Virt, name []byte) error {
	start := len(b.names)
	b.names = appendEntry(b.names, name)
	b.lines = append(b.lines, builtSymbol{addr, start, len(b.names)})
	if len(b.lines) > maxSymbols || len(b.names) > maxNamesBytes {
		return errors.New("too long")
	}
	return nil
}

// table returns what was added, in the order of a kernel's own table.
func (b *builder) table() (*Table, error) {
	slices.SortStableFunc(b.lines, func(a, b builtSymbol) int { return cmp.Compare(a.addr, b.addr) })
	t := &Table{parts: parts{tokens: characters(), addresses: addresses{encoding: Plain, first: len(b.lines)}}}
	t.names = make([]byte, 0, len(b.names))
	for i, l := range b.lines {
		if i%blockNames == 0 {
			t.blocks = append(t.blocks, uint32(len(t.names)))
		}
		if l.addr >= kernelHalf {
			t.addresses.first = min(t.addresses.first, i)
		}
		t.names = append(t.names, b.names[l.start:l.end]...)
		t.addresses.raw = binary.LittleEndian.AppendUint64(t.addresses.raw, uint64(l.addr))
	}
	if t.addresses.first == len(b.lines) {
		return nil, fmt.Errorf("%d symbols: %w", len(b.lines), errNoSymbols)
	}
	return t, nil
}

// mapLine splits a line into address and name, the type letter before it. name is
// nil for a line to be left out: an empty one, or a module's.
func mapLine(p []byte) (addr mem.Virt, name []byte, err error) {
	f := bytes.Fields(p)
	if len(f) == 0 || len(f) == 4 && f[3][0] == '[' {
		return 0, nil, nil
	}
	if len(f) != 3 || len(f[1]) != 1 || !isType(f[1][0]) {
		return 0, nil, fmt.Errorf("%q is not an address, a type and a name", p)
	}
	a, err := strconv.ParseUint(string(f[0]), 16, 64)
	if err != nil {
		return 0, nil, fmt.Errorf("%q is no address", f[0])
	}
	name = append([]byte{f[1][0]}, f[2]...)
	if len(name) > maxName {
		return 0, nil, fmt.Errorf("a name of %d bytes", len(f[2]))
	}
	for _, c := range name {
		if !isNameByte(c) {
			return 0, nil, fmt.Errorf("a name with byte %#x", c)
		}
	}
	return mem.Virt(a), name, nil
}

// appendEntry appends a name as a table stores it, each code its own character.
func appendEntry(p, codes []byte) []byte {
	if n := len(codes); n < 0x80 {
		p = append(p, byte(n))
	} else {
		p = append(p, byte(n)|0x80, byte(n>>7))
	}
	return append(p, codes...)
}

// characters are tokens of which each stands for its own code.
func characters() *tokens {
	t := &tokens{}
	for i := range tokenCount {
		t.start[i] = uint32(len(t.text))
		if isNameByte(byte(i)) {
			t.text, t.len[i] = append(t.text, byte(i)), 1
		}
		t.text = append(t.text, 0)
	}
	t.start[tokenCount] = uint32(len(t.text))
	return t
}

// Slide returns the same table with the addresses in the kernel moved up by by
// bytes, as KASLR moves a kernel; a negative number of bytes (as two's complement)
// moves them down. Absolute and per-CPU symbols stay.
func (t *Table) Slide(by uint64) (*Table, error) {
	first, last := t.addresses.get(t.addresses.first), t.addresses.get(t.Len()-1)
	if down := int64(by) < 0; down && first+mem.Virt(by) < kernelHalf || !down && last+mem.Virt(by) < last {
		return nil, fmt.Errorf("symbols from %v to %v moved by %d run past the kernel's addresses", first, last, int64(by))
	}
	slid := &Table{parts: t.parts}
	slid.addresses.slide += mem.Virt(by)
	return slid, nil
}
