// Package dump reads a machine's memory out of a file, and writes such files.
//
// It reads ELF cores as QEMU and virsh write them, kdump-compressed files, LiME
// files, and raw memory; the first three are recognised by their content. It
// writes ELF, LiME and raw. A file is never read in: every read goes to the
// file, so its size does not matter, and one that is shorter than it claims, or
// shrinks while it is read, gives faults and not zeros.
package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// Format is a kind of dump file.
type Format string

const (
	Auto  Format = ""      // reading: by content
	ELF   Format = "elf"   // ELF core with physical addresses
	Kdump Format = "kdump" // diskdump layout, compressed page by page; read only
	LiME  Format = "lime"  // LiME version 1
	Raw   Format = "raw"   // nothing but memory
)

var (
	// ErrFormat is the reason when a file is no dump, or is one that contradicts itself.
	ErrFormat = errors.New("not a valid memory dump")

	// ErrTruncated is the reason of a fault where the file ends before the memory
	// it promises.
	ErrTruncated = errors.New("the dump file ends before this")

	// ErrNoRegisters says that a dump has no control registers of its CPUs.
	ErrNoRegisters = errors.New("the dump has no control registers")
)

// Options say what a file cannot say of itself.
type Options struct {
	// Format is what the file is; Auto looks at its content. Raw memory has no
	// content to be recognised by and must be named, here or by a Layout.
	Format Format

	// Layout is where the memory of a Raw file belongs, in the order in which it
	// stands in the file. None is one run from address 0.
	Layout []mem.Extent
}

// Source is an open dump file. It implements source.Source,
// source.RegisterReader and source.HoleFinder.
type Source struct {
	file   *file
	image  image
	info   source.Info
	notes  notes
	closed bool
}

var (
	_ source.Source         = (*Source)(nil)
	_ source.RegisterReader = (*Source)(nil)
	_ source.HoleFinder     = (*Source)(nil)
)

// image is what a format makes of its file.
type image interface {
	// describe names the format for people.
	describe() string

	layout() mem.Layout

	// read fills buf from addr on, and says how far it got. With n < len(buf) err
	// is why the byte at addr+n cannot be had.
	read(addr mem.Phys, buf []byte) (n int, err error)

	// data is source.HoleFinder's.
	data(from mem.Phys) (mem.Extent, bool)

	// missing returns how many bytes of the file's memory lie behind its end. For
	// a compressed file it is the bytes of the file.
	missing() uint64

	// close lets go of decoders, not of the file.
	close()
}

// Open opens the dump file at path.
func Open(ctx context.Context, path string, opts Options) (*Source, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	s := &Source{file: f}
	if s.image, err = s.detect(ctx, f, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("open dump %s: %w", path, err), f.Close())
	}
	s.info = source.Info{
		Kind:   "dump",
		Name:   filepath.Base(path),
		Detail: s.image.describe(),
		Layout: s.image.layout(),
		Local:  true,
		CPUs:   s.notes.cpus(),
	}
	if n := s.image.missing(); n > 0 {
		s.info.Detail += fmt.Sprintf(", truncated: %d bytes are missing", n)
	}
	return s, nil
}

// Info implements source.Source.
func (s *Source) Info() source.Info { return s.info }

// Missing returns how many bytes the file promises and does not have: not 0
// means that it was cut off. Reads of what is missing fault with ErrTruncated.
func (s *Source) Missing() uint64 { return s.image.missing() }

// Close implements source.Source. Closing again does nothing.
func (s *Source) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	s.image.close()
	return s.file.Close()
}

// ReadPhys implements mem.Reader.
func (s *Source) ReadPhys(ctx context.Context, reads []mem.Read) error {
	if s.closed {
		return fmt.Errorf("read dump %s: %w", s.info.Name, os.ErrClosed)
	}
	for i := range reads {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read dump %s: %w", s.info.Name, err)
		}
		r := &reads[i]
		n, err := s.image.read(r.Addr, r.Buf)
		r.N, r.Err = n, nil
		if err != nil {
			r.Err = &mem.Fault{Layer: mem.LayerPhysical, Addr: uint64(r.Addr) + uint64(n), Err: err}
		}
	}
	return nil
}

// Data implements source.HoleFinder. What the file does not hold counts as
// data, because it does not read as zeros.
func (s *Source) Data(from mem.Phys) (mem.Extent, bool) { return s.image.data(from) }

// Registers implements source.RegisterReader. EFER holds LME and LMA where other
// registers prove them and is 0 otherwise, as only Umbra's own dumps record it. A
// dump without control registers gives ErrNoRegisters.
func (s *Source) Registers(context.Context) ([]source.Registers, error) {
	regs := s.notes.own
	if len(regs) == 0 {
		regs = s.notes.regs
	}
	if len(regs) == 0 {
		return nil, fmt.Errorf("dump %s: %w", s.info.Name, ErrNoRegisters)
	}
	return append([]source.Registers(nil), regs...), nil
}

// VMCoreInfo returns the text of the dump's VMCOREINFO note, nil when it has
// none. It is the guest's word.
func (s *Source) VMCoreInfo() []byte { return append([]byte(nil), s.notes.vmcoreinfo...) }

// Statuses returns the dump's NT_PRSTATUS notes in their order.
func (s *Source) Statuses() []Status { return append([]Status(nil), s.notes.statuses...) }
