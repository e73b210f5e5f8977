package dump

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/umbravm/umbra/source"
)

// maxCPUs bounds the notes that are kept; Linux has at most 8192 CPUs on x86-64.
const maxCPUs = 1 << 14

const ntPRStatus = 1

// Status is what an NT_PRSTATUS note says of a CPU (struct elf_prstatus of
// Linux's include/linux/elfcore.h, 64-bit).
type Status struct {
	PID    int32 // what the writer put there: QEMU, the CPU's number from 1 on
	RIP    uint64
	RSP    uint64
	CS     uint64
	RFlags uint64
	GSBase uint64
}

// notes is what the notes of a dump told.
type notes struct {
	regs       []source.Registers // from QEMU's notes
	own        []source.Registers // from Umbra's, which know more
	statuses   []Status
	vmcoreinfo []byte
	narrow     int // NT_PRSTATUS notes of a 32-bit layout, only counted
}

func (n *notes) cpus() int {
	return max(len(n.own), len(n.regs), len(n.statuses)+n.narrow)
}

// add decodes a note segment: one after the other a header of three 32-bit
// words (size of the name with its 0, size of the content, type), name and
// content, each padded to 4 bytes.
func (n *notes) add(b []byte) error {
	le := binary.LittleEndian
	for len(b) > 0 {
		if len(b) < 12 {
			// QEMU and makedumpfile may leave padding at the end.
			if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
				return fmt.Errorf("%w: a note's header is cut off", ErrFormat)
			}
			return nil
		}
		namesz, descsz, typ := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		b = b[12:]
		if namesz == 0 && descsz == 0 && typ == 0 {
			continue // padding
		}
		nameEnd := (namesz + 3) &^ 3
		end := nameEnd + (descsz+3)&^3
		if nameEnd+descsz > uint64(len(b)) {
			return fmt.Errorf("%w: a note of %d bytes does not fit its segment", ErrFormat, nameEnd+descsz)
		}
		name := b[:namesz]
		for len(name) > 0 && name[len(name)-1] == 0 {
			name = name[:len(name)-1]
		}
		if err := n.one(string(name), typ, b[nameEnd:nameEnd+descsz]); err != nil {
			return err
		}
		b = b[min(end, uint64(len(b))):]
	}
	return nil
}

func (n *notes) one(name string, typ uint32, desc []byte) error {
	if n.cpus() >= maxCPUs {
		return fmt.Errorf("%w: notes for more than %d CPUs", ErrFormat, maxCPUs)
	}
	switch {
	case name == "CORE" && typ == ntPRStatus:
		n.status(desc)
	case name == "QEMU" && typ == 0:
		r, err := qemuRegisters(desc, len(n.regs))
		if err != nil {
			return err
		}
		n.regs = append(n.regs, r)
	case name == ownNoteName && typ == ownNoteRegisters:
		r, err := decodeOwnRegisters(desc)
		if err != nil {
			return err
		}
		n.own = append(n.own, r)
	case name == "VMCOREINFO":
		n.vmcoreinfo = slices.Clone(desc)
	}
	return nil
}

// status decodes an NT_PRSTATUS note of x86-64. Other layouts are counted: they
// belong to a CPU that was in 32-bit code.
func (n *notes) status(desc []byte) {
	const size, pid, regs = 336, 32, 112
	if len(desc) != size {
		n.narrow++
		return
	}
	le := binary.LittleEndian
	reg := func(i int) uint64 { return le.Uint64(desc[regs+8*i:]) }
	// The order is that of struct user_regs_struct.
	n.statuses = append(n.statuses, Status{
		PID: int32(le.Uint32(desc[pid:])),
		RIP: reg(16), CS: reg(17), RFlags: reg(18), RSP: reg(19), GSBase: reg(22),
	})
}

// Where things stand in the content of QEMU's note (struct QEMUCPUState of its
// target/i386/arch_dump.c), in bytes.
const (
	qemuVersion   = 0
	qemuSize      = 4
	qemuGPR       = 8 // rax rbx rcx rdx rsi rdi rsp rbp r8-r15
	qemuRSP       = qemuGPR + 6*8
	qemuRIP       = qemuGPR + 16*8
	qemuFlags     = qemuRIP + 8
	qemuSegments  = qemuFlags + 8 // cs ds es fs gs ss ldt tr gdt idt
	qemuSegment   = 24            // selector, limit, flags, padding: 32 bits each; base: 64
	qemuCR        = qemuSegments + 10*qemuSegment
	qemuShort     = qemuCR + 5*8 // its size up to QEMU 3.0
	qemuKernelGS  = qemuShort    // from QEMU 3.1 on
	qemuLong      = qemuKernelGS + 8
	segCS, segGS  = 0, 4
	segSS, segIDT = 5, 9
)

// Bits of x86-64 control registers and descriptors.
const (
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10
	descL   = 1 << 21 // of a code segment: 64-bit
)

func qemuRegisters(desc []byte, cpu int) (source.Registers, error) {
	le := binary.LittleEndian
	if len(desc) < qemuShort {
		return source.Registers{}, fmt.Errorf("%w: QEMU's note of CPU %d has %d bytes, want %d or more",
			ErrFormat, cpu, len(desc), qemuShort)
	}
	if v, size := le.Uint32(desc[qemuVersion:]), le.Uint32(desc[qemuSize:]); v != 1 || int64(size) > int64(len(desc)) || size < qemuShort {
		return source.Registers{}, fmt.Errorf("%w: QEMU's note of CPU %d has version %d and says %d bytes of %d",
			ErrFormat, cpu, v, size, len(desc))
	}
	seg := func(i int) []byte { return desc[qemuSegments+i*qemuSegment:] }
	cr := func(i int) uint64 { return le.Uint64(desc[qemuCR+8*i:]) }
	r := source.Registers{
		CPU:     cpu,
		RIP:     le.Uint64(desc[qemuRIP:]),
		RSP:     le.Uint64(desc[qemuRSP:]),
		CR0:     cr(0),
		CR3:     cr(3),
		CR4:     cr(4),
		IDTBase: le.Uint64(seg(segIDT)[16:]),
		GSBase:  le.Uint64(seg(segGS)[16:]),
		// QEMU keeps the privilege level in the stack segment's selector.
		CPL: int(le.Uint32(seg(segSS)) & 3),
	}
	if le.Uint32(desc[qemuSize:]) >= qemuLong {
		r.KernelGSBase = le.Uint64(desc[qemuKernelGS:])
	}
	r.EFER = provenEFER(r, le.Uint32(seg(segCS)[8:])&descL != 0)
	return r, nil
}

// provenEFER returns LME and LMA when r can only belong to a CPU in long mode:
// PAE paging is on, and its code segment is a 64-bit one or its interrupt table
// lies where 32-bit code cannot reach.
func provenEFER(r source.Registers, code64 bool) uint64 {
	if r.CR0&cr0PG != 0 && r.CR4&cr4PAE != 0 && (code64 || r.IDTBase>>32 != 0) {
		return eferLME | eferLMA
	}
	return 0
}
