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
	type line struct {
		addr       mem.Virt
		start, end int // of its entry in names
	}
	var lines []line
	var names []byte
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 4<<10), 4<<10)
	for n := 1; in.Scan(); n++ {
		addr, name, err := mapLine(in.Bytes())
		if err != nil {
			return nil, fmt.Errorf("symbol map, line %d: %w", n, err)
		}
		if name == nil {
			continue
		}
		start := len(names)
		names = appendEntry(names, name)
		lines = append(lines, line{addr, start, len(names)})
		if len(lines) > maxSymbols || len(names) > maxNamesBytes {
			return nil, fmt.Errorf("symbol map, line %d: too long", n)
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("symbol map: %w", err)
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(a.addr, b.addr) })

	t := &Table{parts: parts{tokens: characters(), addresses: addresses{encoding: Plain, first: len(lines)}}}
	t.names = make([]byte, 0, len(names))
	for i, l := range lines {
		if i%blockNames == 0 {
			t.blocks = append(t.blocks, uint32(len(t.names)))
		}
		if l.addr >= kernelHalf {
			t.addresses.first = min(t.addresses.first, i)
		}
		t.names = append(t.names, names[l.start:l.end]...)
		t.addresses.raw = binary.LittleEndian.AppendUint64(t.addresses.raw, uint64(l.addr))
	}
	if t.addresses.first == len(lines) {
		return nil, fmt.Errorf("symbol map of %d symbols: %w", len(lines), errNoSymbols)
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
// bytes, as KASLR moves a kernel. Absolute and per-CPU symbols stay.
func (t *Table) Slide(by uint64) (*Table, error) {
	last := t.addresses.get(t.Len() - 1)
	if _, ok := last.Add(by); !ok {
		return nil, fmt.Errorf("symbols up to %v moved by %#x run past the address space", last, by)
	}
	slid := &Table{parts: t.parts}
	slid.addresses.slide += mem.Virt(by)
	return slid, nil
}
