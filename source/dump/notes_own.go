package dump

import (
	"encoding/binary"
	"fmt"

	"github.com/umbravm/umbra/source"
)

// Umbra's own note holds the registers of a CPU exactly as a source knew them,
// eleven 64-bit words in the order of source.Registers. QEMU's has no EFER, and
// general registers that a source does not know.
const (
	ownNoteName      = "UMBRA"
	ownNoteRegisters = 1
	ownNoteSize      = 11 * 8
)

func encodeOwnRegisters(r source.Registers) []byte {
	var b []byte
	for _, v := range []uint64{
		uint64(r.CPU), r.RIP, r.RSP, r.CR0, r.CR3, r.CR4, r.EFER, r.IDTBase, r.GSBase, r.KernelGSBase, uint64(r.CPL),
	} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func decodeOwnRegisters(desc []byte) (source.Registers, error) {
	if len(desc) != ownNoteSize {
		return source.Registers{}, fmt.Errorf("%w: a register note has %d bytes, want %d", ErrFormat, len(desc), ownNoteSize)
	}
	w := func(i int) uint64 { return binary.LittleEndian.Uint64(desc[8*i:]) }
	if w(0) >= maxCPUs || w(10) > 3 {
		return source.Registers{}, fmt.Errorf("%w: a register note of CPU %d at privilege level %d", ErrFormat, w(0), w(10))
	}
	return source.Registers{
		CPU: int(w(0)), RIP: w(1), RSP: w(2), CR0: w(3), CR3: w(4), CR4: w(5), EFER: w(6),
		IDTBase: w(7), GSBase: w(8), KernelGSBase: w(9), CPL: int(w(10)),
	}, nil
}

// qemuNote is what other tools look for: QEMU's note with what r knows.
func qemuNote(r source.Registers) []byte {
	le := binary.LittleEndian
	b := make([]byte, qemuLong)
	le.PutUint32(b[qemuVersion:], 1)
	le.PutUint32(b[qemuSize:], qemuLong)
	le.PutUint64(b[qemuRIP:], r.RIP)
	le.PutUint64(b[qemuRSP:], r.RSP)
	seg := func(i int) []byte { return b[qemuSegments+i*qemuSegment:] }
	le.PutUint32(seg(segCS), uint32(r.CPL))
	le.PutUint32(seg(segSS), uint32(r.CPL))
	le.PutUint64(seg(segIDT)[16:], r.IDTBase)
	le.PutUint64(seg(segGS)[16:], r.GSBase)
	for i, v := range map[int]uint64{0: r.CR0, 3: r.CR3, 4: r.CR4} {
		le.PutUint64(b[qemuCR+8*i:], v)
	}
	le.PutUint64(b[qemuKernelGS:], r.KernelGSBase)
	return b
}
