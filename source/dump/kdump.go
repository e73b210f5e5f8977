package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/umbravm/umbra/mem"
)

// The kdump-compressed format in blocks of block_size bytes: the header, the sub
// header, two bitmaps of one bit per page (pages that exist, pages that are in
// the file), then one descriptor per page of the second bitmap, then the pages.
// Positions are those of x86-64 (makedumpfile's IMPLEMENTATION and diskdump_mod.h).
const (
	kdumpHeaderSize = 464
	kdumpSubSize    = 104
	kdumpMaxVersion = 6
	kdumpDescSize   = 24
	utsMachine      = 12 + 4*65

	kdumpVMCoreInfoFrom = 3 // header version that brought the field
	kdumpNotesFrom      = 4
	kdumpWidePagesFrom  = 6

	maxKdumpPages   = 1 << 34 // 64 TiB; 4 GiB of bitmaps
	maxKdumpExtents = 1 << 20
	maxVMCoreInfo   = 64 << 10
	rankStride      = 4096 // pages; 512 bytes of a bitmap
)

// kdumpHeader is what the two headers say.
type kdumpHeader struct {
	version    uint32
	block      uint64 // bytes
	subBlocks  uint64
	mapBlocks  uint64 // of both bitmaps
	pages      uint64 // one more than the highest page number
	level      uint32 // which kinds of page were left out
	split      bool
	info, note struct{ off, size uint64 }
}

// bitmaps returns the offset of the first bitmap and the size of each.
func (h kdumpHeader) bitmaps() (off, size uint64) {
	return (1 + h.subBlocks) * h.block, h.mapBlocks * h.block / 2
}

// descriptors returns the offset of the page descriptors.
func (h kdumpHeader) descriptors() uint64 { return (1 + h.subBlocks + h.mapBlocks) * h.block }

// kdump is the image of a kdump-compressed file.
type kdump struct {
	st     storage
	h      kdumpHeader
	ram    mem.Layout
	ranks  []uint64 // pages in the file before each stride of rankStride pages
	total  uint64   // pages in the file
	absent uint64
	codec  codec

	block  [rankStride / 8]byte // of the second bitmap
	blockI uint64               // which; the last one read
	desc   [kdumpDescSize]byte
	packed []byte // one page as it is in the file
	page   []byte // the last page read
	pageI  uint64
	cached bool
}

func openKdump(ctx context.Context, st storage) (*kdump, notes, error) {
	h, err := readKdumpHeader(st)
	if err != nil {
		return nil, notes{}, err
	}
	k := &kdump{st: st, h: h, blockI: ^uint64(0), packed: make([]byte, h.block), page: make([]byte, h.block)}
	if err := k.readBitmaps(ctx); err != nil {
		return nil, notes{}, err
	}
	if len(k.ram) == 0 {
		return nil, notes{}, fmt.Errorf("%w: kdump without any memory in it", ErrFormat)
	}
	n, err := h.notes(st)
	if err != nil {
		return nil, notes{}, err
	}
	k.absent = k.measure()
	return k, n, nil
}

func readKdumpHeader(st storage) (h kdumpHeader, err error) {
	b, err := readBounded(st, "the kdump header", 0, kdumpHeaderSize, kdumpHeaderSize)
	if err != nil {
		return h, err
	}
	le := binary.LittleEndian
	if machine, _, _ := bytes.Cut(b[utsMachine:utsMachine+65], []byte{0}); string(machine) != "x86_64" {
		return h, fmt.Errorf("%w: kdump of a machine %q, only x86_64 is read", ErrFormat, machine)
	}
	h.version = le.Uint32(b[8:])
	h.block, h.subBlocks = uint64(le.Uint32(b[428:])), uint64(le.Uint32(b[432:]))
	h.mapBlocks, h.pages = uint64(le.Uint32(b[436:])), uint64(le.Uint32(b[440:]))
	switch {
	case h.version < 1 || h.version > kdumpMaxVersion:
		return h, fmt.Errorf("%w: kdump header version %d, 1 to %d are read", ErrFormat, h.version, kdumpMaxVersion)
	case h.block != mem.PageSize:
		return h, fmt.Errorf("%w: kdump with blocks of %d bytes, x86-64 has %d", ErrFormat, h.block, mem.PageSize)
	case h.subBlocks < 1:
		return h, fmt.Errorf("%w: kdump without a sub header", ErrFormat)
	}
	if err := h.readSub(st); err != nil {
		return h, err
	}
	if _, size := h.bitmaps(); h.pages == 0 || h.pages > maxKdumpPages || (h.pages+7)/8 > size {
		return h, fmt.Errorf("%w: kdump of %d pages with bitmaps of %d bytes", ErrFormat, h.pages, size)
	}
	return h, nil
}

func (h *kdumpHeader) readSub(st storage) error {
	b, err := readBounded(st, "the kdump sub header", h.block, kdumpSubSize, kdumpSubSize)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	h.level = le.Uint32(b[8:])
	if h.split = le.Uint32(b[12:]) != 0 && h.version >= 2; h.split {
		return fmt.Errorf("%w: this is one part of a split kdump; put it together with makedumpfile --reassemble", ErrFormat)
	}
	if h.version >= kdumpVMCoreInfoFrom {
		h.info.off, h.info.size = le.Uint64(b[32:]), le.Uint64(b[40:])
	}
	if h.version >= kdumpNotesFrom {
		h.note.off, h.note.size = le.Uint64(b[48:]), le.Uint64(b[56:])
	}
	if h.version >= kdumpWidePagesFrom {
		h.pages = le.Uint64(b[96:])
	}
	return nil
}

func (h kdumpHeader) notes(st storage) (n notes, err error) {
	if h.note.size > 0 {
		b, err := readBounded(st, "the notes", h.note.off, h.note.size, maxNoteBytes)
		if err != nil {
			return n, err
		}
		if err := n.add(b); err != nil {
			return n, err
		}
	}
	if n.vmcoreinfo == nil && h.info.size > 0 {
		n.vmcoreinfo, err = readBounded(st, "VMCOREINFO", h.info.off, h.info.size, maxVMCoreInfo)
	}
	return n, err
}

// readBitmaps builds the layout from both bitmaps and the ranks from the second.
func (k *kdump) readBitmaps(ctx context.Context) error {
	off, size := k.h.bitmaps()
	if end := off + 2*size; end > uint64(k.st.size()) {
		return fmt.Errorf("the bitmaps, up to offset %#x: %w", end, ErrTruncated)
	}
	const step = 64 << 10
	one, two := make([]byte, step), make([]byte, step)
	length := (k.h.pages + 7) / 8
	for at := uint64(0); at < length; at += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(step, length-at)
		if _, err := readFull(k.st, one[:n], int64(off+at)); err != nil {
			return fmt.Errorf("the first bitmap: %w", err)
		}
		if _, err := readFull(k.st, two[:n], int64(off+size+at)); err != nil {
			return fmt.Errorf("the second bitmap: %w", err)
		}
		if at+n == length && k.h.pages%8 != 0 {
			one[n-1] &= 1<<(k.h.pages%8) - 1
			two[n-1] &= 1<<(k.h.pages%8) - 1
		}
		for i := uint64(0); i < n; i += rankStride / 8 {
			k.ranks = append(k.ranks, k.total)
			k.total += count(two[i:min(i+rankStride/8, n)])
		}
		for i := range n {
			if err := k.addRAM((at+i)*8, one[i]|two[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// addRAM adds the pages of one byte of a bitmap, in ascending order.
func (k *kdump) addRAM(pfn uint64, b byte) error {
	for b != 0 {
		skip := bits.TrailingZeros8(b)
		run := bits.TrailingZeros8(^(b >> skip))
		e := mem.Extent{Start: mem.Phys((pfn + uint64(skip)) * k.h.block), Size: uint64(run) * k.h.block}
		if n := len(k.ram); n > 0 && k.ram[n-1].End() == e.Start {
			k.ram[n-1].Size += e.Size
		} else if n == maxKdumpExtents {
			return fmt.Errorf("%w: memory in more than %d pieces", ErrFormat, maxKdumpExtents)
		} else {
			k.ram = append(k.ram, e)
		}
		b &^= byte((1<<run - 1) << skip)
	}
	return nil
}

func count(b []byte) (n uint64) {
	for ; len(b) >= 8; b = b[8:] {
		n += uint64(bits.OnesCount64(binary.LittleEndian.Uint64(b)))
	}
	for _, c := range b {
		n += uint64(bits.OnesCount8(c))
	}
	return n
}

// measure returns how many bytes the file lacks, as its last descriptors tell.
// Equal pages share their bytes, so the last page need not be the last bytes.
func (k *kdump) measure() uint64 {
	const last = 4096
	absent := k.st.cut()
	size := uint64(k.st.size())
	end := k.h.descriptors() + k.total*kdumpDescSize
	if absent > 0 || end > size {
		return max(absent, beyond(0, end, size))
	}
	b := make([]byte, min(last, k.total)*kdumpDescSize)
	if _, err := readFull(k.st, b, int64(end)-int64(len(b))); err != nil {
		return absent
	}
	for ; len(b) > 0; b = b[kdumpDescSize:] {
		if d := decodeDescriptor(b); d.off < 1<<62 {
			absent = max(absent, beyond(0, d.off+uint64(d.size), size))
		}
	}
	return absent
}

func (k *kdump) describe() string {
	name := "kdump-compressed"
	if _, ok := k.st.(*flat); ok {
		name += ", flattened"
	}
	left := k.ram.Size()/k.h.block - k.total
	if left > 0 {
		name += fmt.Sprintf(", %d of %d pages left out (level %d)", left, k.ram.Size()/k.h.block, k.h.level)
	}
	return name
}

func (k *kdump) layout() mem.Layout { return slices.Clone(k.ram) }
func (k *kdump) missing() uint64    { return k.absent }
func (k *kdump) close()             { k.codec.close() }

// data implements image. Which pages are zeros only their descriptors tell.
func (k *kdump) data(from mem.Phys) (mem.Extent, bool) { return nextRAM(k.ram, from) }
