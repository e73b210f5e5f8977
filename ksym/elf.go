package ksym

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/umbravm/umbra/internal/vmlinux"
	"github.com/umbravm/umbra/mem"
)

// ErrStripped says that a kernel's ELF file has no symbol table.
var ErrStripped = errors.New("no symbol table in the file")

// Limits of an ELF symbol table, in bytes. Debian's 6.1 has 2.9 MB and 2.5 MB of names.
const (
	maxELFSymbols = maxSymbols * elfSymbolSize
	maxELFNames   = 64 << 20
)

// An ELF symbol (gABI, chapter 4): name, kind, other, section, address, size.
const (
	elfSymbolSize = 24

	elfKindNone, elfKindObject, elfKindFunction = 0, 1, 2
	elfLocal, elfWeak                           = 0, 2
	elfAbsolute, elfReserved                    = 0xfff1, 0xff00
)

// FromVmlinux reads the symbol table of a kernel's ELF file: symbols at the
// addresses the kernel was linked at; see Slide. Type letters are those of nm.
// The error wraps ErrStripped when the file has no table.
func FromVmlinux(path string) (*Table, error) {
	f, err := vmlinux.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := fromELF(f)
	if err != nil {
		return nil, fmt.Errorf("symbols of %s: %w", path, err)
	}
	return t, nil
}

func fromELF(f *vmlinux.File) (*Table, error) {
	s := f.Section(".symtab")
	if s == nil {
		return nil, ErrStripped
	}
	strings, err := f.Linked(s)
	if err != nil {
		return nil, err
	}
	table, err := f.Data(s, maxELFSymbols)
	if err != nil {
		return nil, err
	}
	names, err := f.Data(strings, maxELFNames)
	if err != nil {
		return nil, err
	}
	var b builder
	for i := 0; len(table) >= elfSymbolSize; i++ {
		addr, name, err := elfSymbol(f, table[:elfSymbolSize], names)
		if err == nil && name != nil {
			err = b.add(addr, name)
		}
		if err != nil {
			return nil, fmt.Errorf("symbol %d: %w", i, err)
		}
		table = table[elfSymbolSize:]
	}
	return b.table()
}

// elfSymbol returns a symbol's address and its name behind the type letter; the
// name is nil for what a kernel's own table leaves out: files, sections, what is
// not loaded, and what is defined elsewhere.
func elfSymbol(f *vmlinux.File, p, names []byte) (mem.Virt, []byte, error) {
	le := binary.LittleEndian
	start, section, addr := le.Uint32(p), int(le.Uint16(p[6:])), le.Uint64(p[8:])
	kind, bind := p[4]&15, p[4]>>4
	if kind != elfKindNone && kind != elfKindObject && kind != elfKindFunction || start == 0 {
		return 0, nil, nil
	}
	letter := byte('A')
	if section != elfAbsolute {
		s := f.Numbered(section)
		if s == nil || !s.Loaded() || section >= elfReserved {
			return 0, nil, nil
		}
		letter = s.Letter()
	}
	switch {
	case bind == elfWeak && kind == elfKindObject:
		letter = 'V'
	case bind == elfWeak:
		letter = 'W'
	case bind == elfLocal:
		letter |= 'a' - 'A'
	}
	if uint64(start) >= uint64(len(names)) {
		return 0, nil, fmt.Errorf("its name at %#x lies outside %#x bytes of names", start, len(names))
	}
	text, _, ended := bytes.Cut(names[start:min(uint64(len(names)), uint64(start)+maxName)], []byte{0})
	if !ended {
		return 0, nil, fmt.Errorf("its name is not ended within %d bytes", maxName)
	}
	for _, c := range text {
		if !isNameByte(c) {
			return 0, nil, fmt.Errorf("a name with byte %#x", c)
		}
	}
	if len(text) == 0 {
		return 0, nil, nil
	}
	return mem.Virt(addr), append([]byte{letter}, text...), nil
}
