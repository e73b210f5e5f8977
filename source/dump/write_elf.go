package dump

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

const (
	elfHeaderSize  = 64
	elfProgramSize = 56
	elfSectionSize = 64

	// elfSpare is the room for program headers beyond one per run of RAM, which
	// memory that cannot be read makes necessary. It is a hole until it is used;
	// if it is not enough, the program headers go to the end of the file.
	elfSpare = 1024
)

// elfEncoder writes a core of class 64 for x86-64: header, program headers and
// notes in front of memory, runs aligned like the pages they are.
type elfEncoder struct {
	notes []byte
	maps  []Mapping
	room  uint64 // for the header and program headers, in bytes
}

func newELFEncoder(ctx context.Context, src source.Source, opts WriteOptions, report *Report) (*elfEncoder, error) {
	e := &elfEncoder{maps: opts.KernelMap}
	for _, m := range opts.KernelMap {
		if err := checkExtent(mem.Extent{Start: m.Phys, Size: m.Size}); err != nil {
			return nil, fmt.Errorf("the kernel's mapping at %v: %w", m.Virt, err)
		}
		if _, ok := m.Virt.Add(m.Size - 1); !ok {
			return nil, fmt.Errorf("the kernel's mapping at %v, %#x bytes, runs past the address space", m.Virt, m.Size)
		}
	}
	if r, ok := src.(source.RegisterReader); ok {
		regs, err := r.Registers(ctx)
		// Memory without registers is still worth having.
		report.NoRegisters = err
		for _, r := range regs {
			e.notes = appendNote(e.notes, "QEMU", 0, qemuNote(r))
			e.notes = appendNote(e.notes, ownNoteName, ownNoteRegisters, encodeOwnRegisters(r))
		}
	}
	if len(opts.VMCoreInfo) > 0 {
		e.notes = appendNote(e.notes, "VMCOREINFO", 0, opts.VMCoreInfo)
	}
	if len(e.notes) > maxNoteBytes {
		return nil, fmt.Errorf("notes of %d bytes, more than %d", len(e.notes), maxNoteBytes)
	}
	n := 1 + len(src.Info().Layout) + 2*len(opts.KernelMap) + elfSpare
	e.room = elfHeaderSize + uint64(n)*elfProgramSize
	return e, nil
}

func (e *elfEncoder) begin(start mem.Phys, pos uint64) (uint64, error) {
	if pos == 0 {
		pos = e.room + uint64(len(e.notes))
	}
	// The first offset from pos on that lies in its page as start does in its own.
	return pos + (uint64(start)-pos)%mem.PageSize, nil
}

func (e *elfEncoder) end(target, segment) error { return nil }

func (e *elfEncoder) finish(w target, runs []segment, pos uint64) error {
	var programs []program
	if n := uint64(len(e.notes)); n > 0 {
		programs = append(programs, program{typ: ptNote, offset: e.room, filesz: n, memsz: n})
	}
	for _, g := range runs {
		programs = append(programs, load(g, uint64(g.start)))
	}
	for _, m := range e.maps {
		for _, g := range runs {
			if part, ok := g.within(m.Phys, m.Size); ok {
				programs = append(programs, load(part, uint64(m.Virt)+uint64(part.start-m.Phys)))
			}
		}
		if len(programs) > maxSegments {
			return fmt.Errorf("more than %d program headers", maxSegments)
		}
	}
	table := encodePrograms(programs)
	// makedumpfile looks for them behind the header, whatever the header says.
	phoff, shoff := uint64(elfHeaderSize), uint64(0)
	if phoff+uint64(len(table)) > e.room {
		phoff = (pos + 7) &^ 7
	}
	if len(programs) >= phnumInSection {
		shoff = phoff + uint64(len(table))
		table = append(table, make([]byte, elfSectionSize)...)
		binary.LittleEndian.PutUint32(table[len(table)-elfSectionSize+44:], uint32(len(programs)))
	}
	if _, err := w.WriteAt(table, int64(phoff)); err != nil {
		return err
	}
	if len(e.notes) > 0 {
		if _, err := w.WriteAt(e.notes, int64(e.room)); err != nil {
			return err
		}
	}
	if err := w.Sync(); err != nil {
		return err
	}
	_, err := w.WriteAt(encodeELFHeader(phoff, shoff, len(programs)), 0)
	return err
}

// within returns the part of g in the size bytes at start.
func (g segment) within(start mem.Phys, size uint64) (segment, bool) {
	lo, hi := max(g.start, start), min(g.end(), start+mem.Phys(size))
	if lo >= hi {
		return segment{}, false
	}
	g = g.from(uint64(lo - g.start))
	g.size = uint64(hi - lo)
	return g, true
}

func load(g segment, vaddr uint64) program {
	return program{typ: ptLoad, offset: g.off, vaddr: vaddr, paddr: uint64(g.start), filesz: g.size, memsz: g.size}
}

func encodePrograms(programs []program) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, len(programs)*elfProgramSize)
	for _, p := range programs {
		flags := uint32(0)
		if p.typ == ptLoad {
			flags = 7 // read, write, execute
		}
		b = le.AppendUint32(b, p.typ)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{p.offset, p.vaddr, p.paddr, p.filesz, p.memsz, 0} {
			b = le.AppendUint64(b, v)
		}
	}
	return b
}

// encodeELFHeader returns the file header. A section header is named only to
// hold the number of program headers that does not fit its field here.
func encodeELFHeader(phoff, shoff uint64, phnum int) []byte {
	le := binary.LittleEndian
	b := make([]byte, elfHeaderSize)
	copy(b, elfMagic)
	b[4], b[5], b[6] = elfClass64, elfLSB, 1
	le.PutUint16(b[16:], elfCore)
	le.PutUint16(b[18:], machineAMD64)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], phoff)
	le.PutUint64(b[40:], shoff)
	le.PutUint16(b[52:], elfHeaderSize)
	le.PutUint16(b[54:], elfProgramSize)
	le.PutUint16(b[56:], uint16(min(phnum, phnumInSection)))
	le.PutUint16(b[58:], elfSectionSize)
	if shoff != 0 {
		le.PutUint16(b[60:], 1)
	}
	return b
}

// appendNote appends a note; see notes.add for its form.
func appendNote(b []byte, name string, typ uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, typ)
	b = append(b, name...)
	b = append(b, make([]byte, 4-len(name)%4)...)
	b = append(b, desc...)
	return append(b, make([]byte, -len(desc)&3)...)
}
