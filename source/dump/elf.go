package dump

import (
	"encoding/binary"
	"fmt"

	"github.com/umbravm/umbra/mem"
)

// Limits of what is believed about an ELF core.
const (
	maxSegments  = 1 << 20 // program headers; QEMU writes one per mapping with paging
	maxNoteBytes = 8 << 20 // all notes: about 800 bytes per CPU
)

// Sizes, positions and values of the ELF format, from its specification.
const (
	elfMagic = "\x7fELF"

	elfClass32 = 1
	elfClass64 = 2
	elfLSB     = 1
	elfCore    = 4

	machine386   = 3
	machineAMD64 = 62

	ptLoad = 1
	ptNote = 4

	// phnumInSection says that the number of program headers does not fit its
	// field and stands in sh_info of the first section header.
	phnumInSection = 0xffff
)

// elfHeader is what a core's header says, of either class.
type elfHeader struct {
	wide             bool // 64-bit class
	machine          uint16
	phoff, shoff     uint64
	phentsize, phnum int
}

// program is a program header, of either class.
type program struct {
	typ                                 uint32
	offset, vaddr, paddr, filesz, memsz uint64
}

// openELF decodes the headers of a core. The segments' p_paddr is where memory
// belongs; p_vaddr is not looked at, as QEMU writes addresses there that are
// wrong for the lower half.
func openELF(st storage) (*segments, notes, error) {
	h, err := readELFHeader(st)
	if err != nil {
		return nil, notes{}, err
	}
	programs, err := readPrograms(st, h)
	if err != nil {
		return nil, notes{}, err
	}
	var n notes
	for _, p := range programs {
		if p.typ != ptNote || p.filesz == 0 {
			continue
		}
		b, err := readBounded(st, "the note segment", p.offset, p.filesz, maxNoteBytes)
		if err != nil {
			return nil, notes{}, err
		}
		if err := n.add(b); err != nil {
			return nil, notes{}, err
		}
	}
	if ofProcess(programs) {
		return nil, notes{}, fmt.Errorf("%w: this is the core of a process, it has no physical addresses", ErrFormat)
	}
	runs, left := loads(programs, len(n.regs) > 0)
	s, err := newSegments(st, "ELF core", runs, left)
	return s, n, err
}

// loads sorts the loadable segments into what is in the file and what is not.
func loads(programs []program, qemu bool) (runs []segment, left []mem.Extent) {
	for _, p := range programs {
		if p.typ != ptLoad {
			continue
		}
		if p.filesz > 0 {
			runs = append(runs, segment{start: mem.Phys(p.paddr), size: p.filesz, off: p.offset})
		}
		// QEMU names what is mapped but is no RAM (a device's registers) by a
		// segment without bytes. makedumpfile does the same for RAM it left out.
		if p.memsz > p.filesz && (p.filesz > 0 || !qemu) {
			left = append(left, mem.Extent{Start: mem.Phys(p.paddr + p.filesz), Size: p.memsz - p.filesz})
		}
	}
	return runs, left
}

// ofProcess tells the core of a process, whose segments all have the physical
// address 0, from that of a machine, which has different bytes at 0 only once.
func ofProcess(programs []program) bool {
	first, differ := program{}, false
	for _, p := range programs {
		switch {
		case p.typ != ptLoad || p.filesz == 0:
		case p.paddr != 0:
			return false
		case first.typ != ptLoad:
			first = p
		case p.offset != first.offset:
			differ = true
		}
	}
	return differ
}

func readELFHeader(st storage) (elfHeader, error) {
	b, err := readBounded(st, "the ELF header", 0, min(64, uint64(st.size())), 64)
	if err != nil {
		return elfHeader{}, err
	}
	if len(b) < 52 {
		return elfHeader{}, fmt.Errorf("%w: an ELF header has 52 bytes or more, the file %d", ErrFormat, len(b))
	}
	if b[5] != elfLSB {
		return elfHeader{}, fmt.Errorf("%w: ELF byte order %d, only little-endian cores are read", ErrFormat, b[5])
	}
	le := binary.LittleEndian
	h := elfHeader{machine: le.Uint16(b[18:])}
	if typ := le.Uint16(b[16:]); typ != elfCore {
		return elfHeader{}, fmt.Errorf("%w: ELF file of type %d, a core file is type %d", ErrFormat, typ, elfCore)
	}
	if h.machine != machineAMD64 && h.machine != machine386 {
		return elfHeader{}, fmt.Errorf("%w: ELF core of machine %d, only x86-64 is read", ErrFormat, h.machine)
	}
	want := 32
	switch {
	case b[4] == elfClass64 && len(b) == 64:
		h.wide, want = true, 56
		h.phoff, h.shoff = le.Uint64(b[32:]), le.Uint64(b[40:])
		h.phentsize, h.phnum = int(le.Uint16(b[54:])), int(le.Uint16(b[56:]))
	case b[4] == elfClass32:
		h.phoff, h.shoff = uint64(le.Uint32(b[28:])), uint64(le.Uint32(b[32:]))
		h.phentsize, h.phnum = int(le.Uint16(b[42:])), int(le.Uint16(b[44:]))
	default:
		return elfHeader{}, fmt.Errorf("%w: ELF class %d with a header of %d bytes", ErrFormat, b[4], len(b))
	}
	if h.phentsize != want {
		return elfHeader{}, fmt.Errorf("%w: program headers of %d bytes, want %d", ErrFormat, h.phentsize, want)
	}
	if h.phnum == phnumInSection {
		return h.countFromSection(st)
	}
	return h, nil
}

func (h elfHeader) countFromSection(st storage) (elfHeader, error) {
	size, at := uint64(40), 28
	if h.wide {
		size, at = 64, 44
	}
	b, err := readBounded(st, "the first section header", h.shoff, size, size)
	if err != nil {
		return elfHeader{}, err
	}
	n := binary.LittleEndian.Uint32(b[at:])
	if n > maxSegments {
		return elfHeader{}, fmt.Errorf("%w: %d program headers, at most %d are believed", ErrFormat, n, maxSegments)
	}
	h.phnum = int(n)
	return h, nil
}

func readPrograms(st storage, h elfHeader) ([]program, error) {
	size := uint64(h.phnum) * uint64(h.phentsize)
	b, err := readBounded(st, "the program headers", h.phoff, size, maxSegments*56)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	programs := make([]program, 0, h.phnum)
	for ; len(b) > 0; b = b[h.phentsize:] {
		if h.wide {
			programs = append(programs, program{
				typ: le.Uint32(b), offset: le.Uint64(b[8:]), vaddr: le.Uint64(b[16:]),
				paddr: le.Uint64(b[24:]), filesz: le.Uint64(b[32:]), memsz: le.Uint64(b[40:]),
			})
			continue
		}
		w := func(i int) uint64 { return uint64(le.Uint32(b[4*i:])) }
		programs = append(programs, program{
			typ: uint32(w(0)), offset: w(1), vaddr: w(2), paddr: w(3), filesz: w(4), memsz: w(5),
		})
	}
	return programs, nil
}
