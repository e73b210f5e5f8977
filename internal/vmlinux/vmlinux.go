// Package vmlinux reads the sections of a kernel's ELF file. It is given files of
// half a gigabyte, and files that somebody tampered with: it holds the section
// table and nothing else, and every length in it is checked against the file.
package vmlinux

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

// Errors that reading a file ends in; they wrap one of these.
var (
	ErrNotELF    = errors.New("not an ELF file of a kernel")
	ErrNoSection = errors.New("no such section")
)

// Limits on what a file can make the reader do. Debian's 6.1 has 82 sections.
const (
	maxSections = 1 << 14
	maxNames    = 1 << 20 // bytes of section names
	maxInflated = 1 << 30 // bytes of a compressed section
	maxWindow   = 8 << 20 // of zstd, which the standard asks decoders to support
)

// Parts of the ELF format (gABI, chapters 4 and 5), 64 bits, little endian.
const (
	headerSize  = 64
	sectionSize = 64

	typeExec   = 2  // ET_EXEC
	typeDyn    = 3  // ET_DYN
	machineX86 = 62 // EM_X86_64

	sectionNoBits   = 8       // SHT_NOBITS
	flagCompressed  = 1 << 11 // SHF_COMPRESSED
	compressedZlib  = 1
	compressedZstd  = 2
	compressHeader  = 24
	flagWrite       = 1 << 0 // SHF_WRITE
	flagAllocated   = 1 << 1 // SHF_ALLOC
	flagCode        = 1 << 2 // SHF_EXECINSTR
	specialSections = 0xff00 // SHN_LORESERVE

	bootMagicAt = 0x202 // of "HdrS" in a bzImage (Documentation/arch/x86/boot.rst)
)

// Section is an entry of the section table.
type Section struct {
	Name   string
	Addr   uint64 // where it is linked, 0 when it is not loaded
	Link   int    // the section it belongs with: a symbol table's strings
	Size   uint64 // bytes in the file
	offset uint64
	kind   uint32
	flags  uint64
}

// Letter returns what nm prints for a global symbol of the section: T for code, B
// for what has no bytes in the file, D for what can be written, R for the rest.
func (s *Section) Letter() byte {
	switch {
	case s.flags&flagCode != 0:
		return 'T'
	case s.kind == sectionNoBits:
		return 'B'
	case s.flags&flagWrite != 0:
		return 'D'
	}
	return 'R'
}

// Loaded tells whether the section is part of the running kernel.
func (s *Section) Loaded() bool { return s.flags&flagAllocated != 0 }

// File is an open kernel.
type File struct {
	in       io.ReaderAt
	file     *os.File // in, nil when it is none
	size     uint64
	sections []Section
}

// Open reads the section table of the file at path.
func Open(path string) (*File, error) {
	// A pipe that nobody writes to must not be waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	e := &File{in: f, file: f}
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = notELF("not a regular file")
	default:
		e.size = uint64(st.Size())
		err = e.load()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return e, nil
}

// New reads the section table of size bytes of in.
func New(in io.ReaderAt, size int64) (*File, error) {
	f := &File{in: in, size: uint64(max(0, size))}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// Close lets go of the file. What Map returned stays.
func (f *File) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

func notELF(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrNotELF}, args...)...)
}

func (f *File) load() error {
	h, err := f.read(0, headerSize)
	if err != nil || string(h[:4]) != "\x7fELF" {
		if magic, err := f.read(bootMagicAt, 4); err == nil && string(magic) == "HdrS" {
			return notELF("a compressed image (vmlinuz, bzImage): the vmlinux has to be taken out of it first")
		}
		return notELF("it does not begin as one")
	}
	le := binary.LittleEndian
	if h[4] != 2 || h[5] != 1 {
		return notELF("not of 64 bits, little endian")
	}
	if m := le.Uint16(h[18:]); m != machineX86 {
		return notELF("for machine %d, not x86-64", m)
	}
	if t := le.Uint16(h[16:]); t != typeExec && t != typeDyn {
		return notELF("not linked (type %d): a module or an object file", t)
	}
	if n := le.Uint16(h[58:]); n != sectionSize {
		return notELF("section headers of %d bytes", n)
	}
	count, names := uint64(le.Uint16(h[60:])), int(le.Uint16(h[62:]))
	if count == 0 || count > maxSections {
		return notELF("%d sections", count)
	}
	table, err := f.read(le.Uint64(h[40:]), count*sectionSize)
	if err != nil {
		return notELF("section table: %w", err)
	}
	return f.loadSections(table, names)
}

func (f *File) loadSections(table []byte, names int) error {
	le := binary.LittleEndian
	at := make([]uint32, 0, len(table)/sectionSize)
	for ; len(table) >= sectionSize; table = table[sectionSize:] {
		at = append(at, le.Uint32(table))
		s := Section{
			kind: le.Uint32(table[4:]), flags: le.Uint64(table[8:]), Addr: le.Uint64(table[16:]),
			offset: le.Uint64(table[24:]), Size: le.Uint64(table[32:]), Link: int(le.Uint32(table[40:])),
		}
		f.sections = append(f.sections, s)
	}
	if names >= len(f.sections) || names >= specialSections {
		return notELF("section %d is to name the others", names)
	}
	text, err := f.Data(&f.sections[names], maxNames)
	if err != nil {
		return notELF("names of sections: %w", err)
	}
	for i, start := range at {
		if uint64(start) >= uint64(len(text)) {
			return notELF("the name of section %d lies outside", i)
		}
		name, _, _ := bytes.Cut(text[start:min(uint64(len(text)), uint64(start)+64)], []byte{0})
		f.sections[i].Name = string(name)
	}
	return nil
}

// read returns n bytes at off, which must lie in the file.
func (f *File) read(off, n uint64) ([]byte, error) {
	if off > f.size || n > f.size-off {
		return nil, fmt.Errorf("%#x bytes at %#x lie outside a file of %#x bytes", n, off, f.size)
	}
	b := make([]byte, n)
	if _, err := f.in.ReadAt(b, int64(off)); err != nil {
		return nil, err
	}
	return b, nil
}

// Section returns the first section of that name which holds something in the
// file, nil when there is none.
func (f *File) Section(name string) *Section {
	for i := range f.sections {
		if s := &f.sections[i]; s.Name == name && s.kind != sectionNoBits && s.Size > 0 {
			return s
		}
	}
	return nil
}

// Numbered returns the section a symbol says it lies in, nil when there is none of
// that number.
func (f *File) Numbered(i int) *Section {
	if i <= 0 || i >= len(f.sections) {
		return nil
	}
	return &f.sections[i]
}

// Linked returns the section that s belongs with.
func (f *File) Linked(s *Section) (*Section, error) {
	if s.Link <= 0 || s.Link >= len(f.sections) {
		return nil, fmt.Errorf("section %s belongs with section %d: %w", s.Name, s.Link, ErrNoSection)
	}
	return &f.sections[s.Link], nil
}

// Data reads a section whole, decompressed where it is compressed. More than limit
// bytes are an error.
func (f *File) Data(s *Section, limit uint64) ([]byte, error) {
	if s.kind == sectionNoBits {
		return nil, fmt.Errorf("section %s holds nothing in this file", s.Name)
	}
	if s.Size > limit {
		return nil, fmt.Errorf("section %s has %#x bytes, more than %#x", s.Name, s.Size, limit)
	}
	b, err := f.read(s.offset, s.Size)
	if err == nil && s.flags&flagCompressed != 0 {
		b, err = inflate(b, limit)
	}
	if err != nil {
		return nil, fmt.Errorf("section %s: %w", s.Name, err)
	}
	return b, nil
}

// Map returns a section's bytes as they lie in the file, mapped and not read; a
// compressed one is decompressed into memory. Reading from what it returns can
// fault when the file is cut meanwhile (see debug.SetPanicOnFault). unmap, which
// may be nil, lets go of it.
func (f *File) Map(s *Section) (b []byte, unmap func(), err error) {
	if s.kind == sectionNoBits || s.flags&flagCompressed != 0 || f.file == nil {
		b, err := f.Data(s, maxInflated)
		return b, nil, err
	}
	if s.offset > f.size || s.Size > f.size-s.offset {
		return nil, nil, fmt.Errorf("section %s lies outside the file", s.Name)
	}
	skip := s.offset % uint64(os.Getpagesize())
	all, err := syscall.Mmap(int(f.file.Fd()), int64(s.offset-skip), int(s.Size+skip), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("section %s: map: %w", s.Name, err)
	}
	return all[skip:], func() { _ = syscall.Munmap(all) }, nil
}

// At reads n bytes that are linked at addr.
func (f *File) At(addr, n uint64) ([]byte, error) {
	for i := range f.sections {
		s := &f.sections[i]
		if s.flags&flagAllocated == 0 || s.kind == sectionNoBits || s.flags&flagCompressed != 0 {
			continue
		}
		if addr >= s.Addr && addr-s.Addr < s.Size {
			return f.read(s.offset+addr-s.Addr, min(n, s.Size-(addr-s.Addr)))
		}
	}
	return nil, fmt.Errorf("address %#x lies in no section of the file", addr)
}

// inflate decompresses a section (gABI, Elf64_Chdr).
func inflate(b []byte, limit uint64) ([]byte, error) {
	if len(b) < compressHeader {
		return nil, errors.New("compressed, without a header")
	}
	le := binary.LittleEndian
	size := le.Uint64(b[8:])
	if size > limit {
		return nil, fmt.Errorf("%#x bytes decompressed, more than %#x", size, limit)
	}
	var in io.Reader
	switch kind, body := le.Uint32(b), bytes.NewReader(b[compressHeader:]); kind {
	case compressedZlib:
		z, err := zlib.NewReader(body)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		in = z
	case compressedZstd:
		z, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		in = z
	default:
		return nil, fmt.Errorf("compressed in way %d", kind)
	}
	// What the header promises is believed only as it comes.
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(in, int64(size)+1))
	if err != nil {
		return nil, err
	}
	if uint64(n) != size {
		return nil, fmt.Errorf("decompressed to other than %#x bytes", size)
	}
	return out.Bytes(), nil
}
