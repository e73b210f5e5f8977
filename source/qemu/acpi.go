package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

const (
	// acpiBlock is the size of the memory block in which QEMU keeps the ACPI tables
	// it made, for the firmware to fetch (hw/i386/acpi-build.c). The guest cannot
	// write to it.
	acpiBlock = 2 << 20

	acpiHeader = 8 // signature, then the length of the table with it

	// The block starts with the FACS, 64 bytes long, and the DSDT.
	facsSize = 64
)

// window is an address range that the host bridge passes on to PCI devices.
type window struct {
	first, last uint64
	wide        bool // a 64-bit descriptor
}

type windows []window

// pciWindows reads the host bridge's windows out of QEMU's ACPI tables. It returns
// none when the machine has no such tables.
func (o *opener) pciWindows() (windows, error) {
	all := coalesce(o.maps)
	for i, m := range all {
		if i+1 == len(all) || !m.anonymous() || m.perms != "rw-p" || m.size() < acpiBlock {
			continue
		}
		if g := all[i+1]; g.start != m.end || g.perms != "---p" {
			continue
		}
		var head [facsSize + acpiHeader]byte
		hva := m.end - acpiBlock
		if _, err := o.mem.readAt(head[:], hva); err != nil {
			return nil, err
		}
		if !bytes.HasPrefix(head[:], []byte("FACS\x40\x00\x00\x00")) || string(head[facsSize:facsSize+4]) != "DSDT" {
			continue
		}
		tables := make([]byte, acpiBlock)
		if _, err := o.mem.readAt(tables, hva); err != nil {
			return nil, err
		}
		return parseWindows(tables)
	}
	return nil, nil
}

// parseWindows finds the memory windows in the DSDT of a block of ACPI tables
// (ACPI 6.5, 6.4.3.5: DWord and QWord address space descriptors). The tables are
// AML; the descriptors stand in it as they are.
func parseWindows(tables []byte) (windows, error) {
	if len(tables) < facsSize+acpiHeader || string(tables[facsSize:facsSize+4]) != "DSDT" {
		return nil, fmt.Errorf("ACPI tables: no DSDT behind the FACS")
	}
	size := binary.LittleEndian.Uint32(tables[facsSize+4:])
	if size < acpiHeader || uint64(size) > uint64(len(tables)-facsSize) {
		return nil, fmt.Errorf("ACPI tables: DSDT of %d bytes", size)
	}
	dsdt := tables[facsSize : facsSize+int(size)]
	ws := windows{}
	for i := acpiHeader; i+46 <= len(dsdt); i++ {
		if w, ok := parseWindow(dsdt[i:]); ok {
			ws = append(ws, w)
		}
	}
	if len(ws) == 0 {
		return nil, fmt.Errorf("ACPI tables: the DSDT names no PCI window")
	}
	return ws, nil
}

// parseWindow reads the descriptor b starts with, if any: tag, length (2 bytes),
// resource type, flags (2 bytes), then granularity, minimum, maximum, translation
// offset and length of 4 or 8 bytes each. b has at least 46 bytes.
func parseWindow(b []byte) (window, bool) {
	var f [5]uint64
	wide := false
	switch {
	case b[0] == 0x87 && binary.LittleEndian.Uint16(b[1:]) == 0x17:
		for i := range f {
			f[i] = uint64(binary.LittleEndian.Uint32(b[6+4*i:]))
		}
	case b[0] == 0x8a && binary.LittleEndian.Uint16(b[1:]) == 0x2b:
		wide = true
		for i := range f {
			f[i] = binary.LittleEndian.Uint64(b[6+8*i:])
		}
	default:
		return window{}, false
	}
	const memory = 0
	ok := b[3] == memory && f[0] == 0 && f[3] == 0 && f[1] < f[2] && f[2]-f[1]+1 == f[4]
	return window{f[1], f[2], wide}, ok
}

// prove tells whether the windows fit a machine with low bytes of RAM from 0 and
// high bytes from 4 GiB on. The lowest PCI window begins where low RAM ends.
// Before the firmware has run, q35 states only the 64-bit window, which begins at
// the first whole GiB behind all RAM, pluggable memory included.
func (ws windows) prove(low, high uint64, slots bool) error {
	exact := false
	narrow := slices.ContainsFunc(ws, func(w window) bool { return !w.wide && w.first >= romEnd })
	for _, w := range ws {
		switch {
		case w.first < romEnd: // video memory
		case w.first < low || w.wide && w.first < highMem+high:
			return fmt.Errorf("PCI devices are at %#x-%#x by its ACPI tables, where its machine type would have RAM", w.first, w.last)
		case w.wide && !narrow && !slots:
			const gib = 1 << 30
			exact = exact || w.first == (highMem+high+gib-1)&^(gib-1)
		case !w.wide:
			exact = exact || w.first == low
		}
	}
	if !exact {
		return fmt.Errorf("its ACPI tables do not confirm that low RAM ends at %#x", low)
	}
	return nil
}
