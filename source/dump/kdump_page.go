package dump

import (
	"encoding/binary"
	"fmt"

	"github.com/umbravm/umbra/mem"
)

// How a page is stored: the flags of its descriptor.
const (
	pageRaw    = 0
	pageZlib   = 1 << 0
	pageLZO    = 1 << 1
	pageSnappy = 1 << 2
	pageZstd   = 1 << 5
)

// descriptor says where a page's bytes are (struct page_desc: the offset, 64
// bits; size and flags, 32 bits each; page flags, 64 bits, always 0).
type descriptor struct {
	off   uint64
	size  uint32
	flags uint32
}

func decodeDescriptor(b []byte) descriptor {
	le := binary.LittleEndian
	return descriptor{off: le.Uint64(b), size: le.Uint32(b[8:]), flags: le.Uint32(b[12:])}
}

func (k *kdump) read(addr mem.Phys, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		a, ok := addr.Add(uint64(n))
		if !ok {
			return n, mem.ErrNotRAM
		}
		if err := k.load(uint64(a) / k.h.block); err != nil {
			return n, err
		}
		n += copy(buf[n:], k.page[uint64(a)%k.h.block:])
	}
	return n, nil
}

// load makes k.page the page pfn.
func (k *kdump) load(pfn uint64) error {
	if k.cached && k.pageI == pfn {
		return nil
	}
	k.cached = false
	rank, dumped, err := k.rank(pfn)
	if err != nil {
		return err
	}
	if !dumped {
		return k.leftOut(pfn)
	}
	if err := k.unpack(rank); err != nil {
		return err
	}
	k.pageI, k.cached = pfn, true
	return nil
}

// leftOut says why the page pfn is not in the file. makedumpfile leaves out free
// pages, caches and the like; a page of zeros that it keeps has a descriptor.
func (k *kdump) leftOut(pfn uint64) error {
	if pfn < k.h.pages {
		if _, ok := k.ram.Find(mem.Phys(pfn * k.h.block)); ok {
			return errLeftOut
		}
	}
	return mem.ErrNotRAM
}

// rank returns how many pages are in the file before pfn, and whether pfn is.
func (k *kdump) rank(pfn uint64) (rank uint64, dumped bool, err error) {
	if pfn >= k.h.pages {
		return 0, false, nil
	}
	i := pfn / rankStride
	if i != k.blockI {
		off, size := k.h.bitmaps()
		n := min(uint64(len(k.block)), size-i*uint64(len(k.block)))
		k.blockI = ^uint64(0)
		if _, err := readFull(k.st, k.block[:n], int64(off+size+i*uint64(len(k.block)))); err != nil {
			return 0, false, fmt.Errorf("the second bitmap: %w", err)
		}
		k.blockI = i
	}
	in := pfn % rankStride
	bit := byte(1) << (in % 8)
	if k.block[in/8]&bit == 0 {
		return 0, false, nil
	}
	rank = k.ranks[i] + count(k.block[:in/8]) + count([]byte{k.block[in/8] & (bit - 1)})
	return rank, true, nil
}

// unpack makes k.page the page with the given descriptor.
func (k *kdump) unpack(rank uint64) error {
	if _, err := readFull(k.st, k.desc[:], int64(k.h.descriptors()+rank*kdumpDescSize)); err != nil {
		return fmt.Errorf("its descriptor: %w", err)
	}
	d := decodeDescriptor(k.desc[:])
	if d.off == 0 {
		// makedumpfile leaves descriptors empty when the disk is full.
		return fmt.Errorf("%w: its descriptor is empty", mem.ErrNotRecorded)
	}
	if d.size == 0 || uint64(d.size) > k.h.block || d.off >= 1<<62 {
		return fmt.Errorf("%w: a page of %d bytes at offset %#x", ErrFormat, d.size, d.off)
	}
	packed := k.packed[:d.size]
	if _, err := readFull(k.st, packed, int64(d.off)); err != nil {
		return err
	}
	if err := k.codec.decode(k.page, packed, d.flags); err != nil {
		return fmt.Errorf("%w: a page at offset %#x: %w", ErrFormat, d.off, err)
	}
	return nil
}
