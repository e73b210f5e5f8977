package kernel

import (
	"context"
	"errors"
	"fmt"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/paging"
)

// Where x86-64 Linux maps its image: arch/x86/include/asm/page_64_types.h. With
// KASLR the image lies anywhere in the first GiB; modules follow.
const (
	imageLow  mem.Virt = 0xffff_ffff_8000_0000 // __START_KERNEL_map
	imageHigh mem.Virt = 0xffff_ffff_bfff_ffff
)

// maxImage bounds the kernel image, in bytes. Debian's largest has 80 MB.
const maxImage = 512 << 20

// maxRuns bounds the runs of an image: each translation and each read of it looks at
// all of them. Real ones have fewer than ten.
const maxRuns = 1 << 10

// minImage is less than any kernel has mapped. What user-mode page tables map of
// it under page-table isolation is smaller still.
const minImage = 4 << 20

// image is the kernel's own text and data as mapped: runs of pages that lie in
// physical memory in the same order, with holes where init memory was freed.
type image struct {
	ctx   context.Context
	src   mem.Reader
	base  mem.Virt // of the first run
	size  uint64   // to the end of the last
	delta uint64   // physical = virtual - delta
	runs  []paging.Mapping
	read  uint64 // bytes read so far
}

var errNoImage = errors.New("no kernel image is mapped")

// imageAt finds the kernel image mapped by the page tables of sp.
func imageAt(ctx context.Context, src mem.Reader, sp *paging.Space) (*image, error) {
	byDelta := make(map[uint64][]paging.Mapping)
	total := make(map[uint64]uint64)
	var best uint64
	found := false
	err := sp.Mappings(imageLow, imageHigh, func(m paging.Mapping) bool {
		d := uint64(m.Virt) - uint64(m.Phys)
		byDelta[d] = append(byDelta[d], m)
		total[d] += m.Size
		if !found || total[d] > total[best] {
			best, found = d, true
		}
		return len(byDelta) < 4096
	})
	if err != nil && !found {
		return nil, fmt.Errorf("find the kernel image: %w", err)
	}
	if !found || total[best] < minImage {
		return nil, errNoImage
	}
	runs := byDelta[best]
	im := &image{ctx: ctx, src: src, base: runs[0].Virt, delta: best}
	if len(runs) > maxRuns {
		return nil, fmt.Errorf("the kernel image at %v is mapped in %d pieces: %w", runs[0].Virt, len(runs), ErrTooLong)
	}
	for _, r := range runs {
		if end := uint64(r.Virt-im.base) + r.Size; end <= maxImage {
			im.runs, im.size = append(im.runs, r), end
		}
	}
	return im, nil
}

// Base returns the lowest address mapped.
func (im *image) Base() mem.Virt { return im.base }

// Size returns the bytes from Base to the end of the highest run, holes included.
func (im *image) Size() uint64 { return im.size }

// phys returns where an address of the image lies, whether or not it is mapped.
func (im *image) phys(a mem.Virt) mem.Phys { return mem.Phys(uint64(a) - im.delta) }

// ReadAt reads at off from Base on, as io.ReaderAt does. A hole ends it with a fault.
func (im *image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || uint64(off) >= im.size {
		return 0, &mem.Fault{Layer: mem.LayerVirtual, Addr: uint64(im.base) + uint64(off), Err: mem.ErrNotPresent}
	}
	a := im.base + mem.Virt(off)
	for _, r := range im.runs {
		in := uint64(a - r.Virt)
		if a < r.Virt || in >= r.Size {
			continue
		}
		want := p[:min(uint64(len(p)), r.Size-in)]
		n, err := mem.Gather(im.ctx, im.src, r.Phys+mem.Phys(in), want)
		im.read += uint64(n)
		if err != nil || len(want) == len(p) {
			return n, err
		}
		m, err := im.ReadAt(p[n:], off+int64(n))
		return n + m, err
	}
	return 0, &mem.Fault{Layer: mem.LayerVirtual, Addr: uint64(a), Err: mem.ErrNotPresent}
}

// Read fills buf from a on, or fails.
func (im *image) Read(a mem.Virt, buf []byte) error {
	if a < im.base {
		return &mem.Fault{Layer: mem.LayerVirtual, Addr: uint64(a), Err: mem.ErrNotPresent}
	}
	_, err := im.ReadAt(buf, int64(a-im.base))
	return err
}
