package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/paging"
	"github.com/umbravm/umbra/source"
)

// How a kernel was found.
const (
	ByRegisters  = "registers"
	ByVMCoreInfo = "vmcoreinfo"
	ByScan       = "page-table scan"
)

// candidate is page tables that map something of the size and at the place of a
// kernel image. It is a kernel only once prove says so.
type candidate struct {
	method  string
	root    mem.Phys
	levels  int
	image   *image
	handler mem.Virt // of page faults, as the processor's IDT has it; 0 when unknown
}

// finder looks for kernels in a source's memory.
type finder struct {
	ctx    context.Context
	src    source.Source
	snap   *mem.Snapshot
	asked  bool       // the CPUs' registers were read
	visits int        // table entries looked at
	dead   []mem.Phys // page tables of kernels seen not to run
}

func newFinder(ctx context.Context, src source.Source) *finder {
	return &finder{ctx: ctx, src: src, snap: mem.NewSnapshot(ctx, src, mem.Options{Static: true})}
}

// pageFaultVector is the processor's exception number of a page fault.
const pageFaultVector = 14

// fromRegisters returns what the page tables now in use by the CPUs map.
func (f *finder) fromRegisters(regs []source.Registers) (cs []candidate, err error) {
	var errs []error
	for _, r := range regs {
		if r.CR0&paging.CR0Paging == 0 || r.EFER&paging.EFERLMA == 0 {
			errs = append(errs, fmt.Errorf("CPU %d is not in 64-bit mode", r.CPU))
			continue
		}
		levels := 4
		if r.CR4&paging.CR4LA57 != 0 {
			levels = 5
		}
		// With page-table isolation a CPU in user mode runs on a second table in
		// the page behind the kernel's (arch/x86/mm/pti.c).
		roots := []mem.Phys{mem.Phys(r.CR3 & paging.CR3Addr)}
		if r.CR3&mem.PageSize != 0 {
			roots = append(roots, roots[0]&^mem.PageSize)
		}
		for _, root := range roots {
			c, err := f.candidate(ByRegisters, root, levels)
			if err != nil {
				errs = append(errs, fmt.Errorf("CPU %d, CR3 %#x: %w", r.CPU, r.CR3, err))
				continue
			}
			c.handler = f.faultHandler(mem.Virt(r.IDTBase), c)
			cs = append(cs, c)
		}
	}
	slices.SortStableFunc(cs, func(a, b candidate) int { return int(int64(b.image.mapped()) - int64(a.image.mapped())) })
	return distinct(cs), errors.Join(errs...)
}

// mapped returns the bytes of the image that are mapped.
func (im *image) mapped() (n uint64) {
	for _, r := range im.runs {
		n += r.Size
	}
	return n
}

func (f *finder) candidate(method string, root mem.Phys, levels int) (candidate, error) {
	sp := paging.New(f.snap, root, levels)
	im, err := imageAt(f.ctx, f.src, sp)
	f.visits += sp.Visits()
	if err != nil {
		return candidate{}, err
	}
	return candidate{method: method, root: sp.Root(), levels: levels, image: im}, nil
}

// faultHandler reads the page fault gate of the interrupt descriptor table
// (Intel SDM volume 3, 6.14.1). It returns 0 when the table cannot be read.
func (f *finder) faultHandler(idt mem.Virt, c candidate) mem.Virt {
	var gate [16]byte
	sp := paging.New(f.snap, c.root, c.levels)
	if _, err := sp.Read(idt+pageFaultVector*16, gate[:]); err != nil {
		return 0
	}
	le := binary.LittleEndian
	return mem.Virt(uint64(le.Uint16(gate[0:])) | uint64(le.Uint16(gate[6:]))<<16 | uint64(le.Uint32(gate[8:]))<<32)
}

// distinct drops candidates whose image another, earlier one has too.
func distinct(cs []candidate) (out []candidate) {
	for _, c := range cs {
		same := func(o candidate) bool {
			return o.image.delta == c.image.delta && o.image.base == c.image.base && o.levels == c.levels
		}
		if !slices.ContainsFunc(out, same) {
			out = append(out, c)
		}
	}
	return out
}

// Bounds of a search through all of RAM.
const (
	maxRoots      = 1 << 16 // page-table roots looked at
	maxNotes      = 64      // VMCOREINFO notes followed
	maxCandidates = 256     // page-table roots that lead to an image
	maxEntries    = 1 << 23 // looked at in tables that may lead to one
	scanChunk     = 1 << 20
)

// eachPage calls visit for every page of RAM that was ever written, a chunk at a
// time, until it returns false.
func (f *finder) eachPage(visit func(at mem.Phys, page []byte) bool) error {
	buf := make([]byte, scanChunk)
	read := f.src.ReadPhys
	if p, ok := f.src.(source.Peeker); ok {
		read = p.Peek
	}
	for _, e := range f.src.Info().Layout {
		for at := e.Start.Page(); at < e.End(); {
			run := mem.Extent{Start: at, Size: uint64(e.End() - at)}
			if h, ok := f.src.(source.HoleFinder); ok {
				d, ok := h.Data(at)
				if !ok || d.Start >= e.End() {
					break
				}
				run = mem.Extent{Start: max(d.Start.Page(), at), Size: uint64(min(d.End(), e.End()) - max(d.Start.Page(), at))}
			}
			for done := uint64(0); done < run.Size; {
				p := run.Start + mem.Phys(done)
				chunk := buf[:min(scanChunk, run.Size-done)]
				reads := []mem.Read{{Addr: p, Buf: chunk}}
				if err := read(f.ctx, reads); err != nil {
					return err
				}
				n := reads[0].N &^ (mem.PageSize - 1)
				for i := 0; i < n; i += mem.PageSize {
					if !visit(p+mem.Phys(i), chunk[i:i+mem.PageSize]) {
						return nil
					}
				}
				if done += uint64(n); n < len(chunk) {
					done += mem.PageSize // this one cannot be read; those behind it may
				}
			}
			at = run.End()
		}
	}
	return nil
}

// fromNotes looks for the note a kernel keeps for kdump, which begins a page
// (kernel/crash_core.c, vmcoreinfo_note; since 6.13 kernel/vmcore_info.c), and for
// the page tables it names.
func (f *finder) fromNotes() (cs []candidate, err error) {
	var notes []VMCoreInfo
	err = f.eachPage(func(at mem.Phys, page []byte) bool {
		if _, ok := parseNote(page); !ok {
			return true
		}
		if n, err := f.snap.Read(at, page); err == nil && n == len(page) { // a recording keeps it
			if v, ok := parseNote(page); ok {
				notes = append(notes, v)
			}
		}
		return len(notes) < maxNotes
	})
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		root, levels, err := n.pageTables()
		if err != nil {
			continue
		}
		if c, err := f.candidate(ByVMCoreInfo, root, levels); err == nil {
			cs = append(cs, c)
		}
	}
	return distinct(cs), nil
}

// fromTables looks for top page tables: a page whose last entry leads, in two or
// three steps, to a kernel image.
func (f *finder) fromTables() (cs []candidate, err error) {
	layout := f.src.Info().Layout
	seen := make(map[uint64]bool)
	tried := 0
	err = f.eachPage(func(at mem.Phys, page []byte) bool {
		last := binary.LittleEndian.Uint64(page[mem.PageSize-8:])
		// Present, writable, not large, accessed or not, and in RAM.
		if last&0x83 != 0x03 || seen[last] {
			return true
		}
		if _, ok := layout.Find(mem.Phys(last & paging.CR3Addr)); !ok {
			return true
		}
		seen[last] = true
		for _, levels := range []int{4, 5} {
			if c, err := f.candidate(ByScan, at, levels); err == nil {
				cs = append(cs, c)
				tried++
			}
		}
		return tried < maxCandidates && len(seen) < maxRoots && f.visits < maxEntries
	})
	if err == nil && len(cs) == 0 && (len(seen) == maxRoots || f.visits >= maxEntries) {
		err = fmt.Errorf("search for page tables: too many look-alikes: %w", ErrTooLong)
	}
	return distinct(cs), err
}
