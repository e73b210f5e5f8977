package dump

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
)

// Signatures at the start of a file.
const (
	flatMagic  = "makedumpfile\x00\x00\x00\x00"
	kdumpMagic = "KDUMP   "
	diskMagic  = "DISKDUMP"
)

const lookedFor = "looked for an ELF core, kdump-compressed (also flattened) and LiME"

// detect recognises the file and decodes its headers.
func (s *Source) detect(ctx context.Context, st storage, opts Options) (image, error) {
	if opts.Format == Raw || opts.Format == Auto && opts.Layout != nil {
		return openRaw(st, opts.Layout)
	}
	if opts.Layout != nil {
		return nil, fmt.Errorf("%w: a layout was given for a file in %s format, which has its own", ErrFormat, opts.Format)
	}
	magic := make([]byte, 16)
	n, err := readFull(st, magic, 0)
	if err != nil && n < 4 {
		return nil, fmt.Errorf("%w: %s; the file has %d bytes", ErrFormat, lookedFor, st.size())
	}
	magic = magic[:n]
	found, img, err := s.open(ctx, st, magic)
	if err != nil {
		return nil, err
	}
	if opts.Format != Auto && opts.Format != found {
		return nil, fmt.Errorf("%w: format %s was asked for, this is %s", ErrFormat, opts.Format, found)
	}
	return img, nil
}

// open decodes the headers of what starts with magic.
func (s *Source) open(ctx context.Context, st storage, magic []byte) (f Format, img image, err error) {
	has := func(m string) bool { return strings.HasPrefix(string(magic), m) }
	switch {
	case has(elfMagic):
		f = ELF
		img, s.notes, err = openELF(st)
	case has(kdumpMagic):
		f = Kdump
		img, s.notes, err = openKdump(ctx, st)
	case isLiME(magic):
		f = LiME
		img, err = openLiME(st)
	case has(flatMagic):
		if _, nested := st.(*flat); nested {
			return "", nil, fmt.Errorf("%w: a flattened file in a flattened file", ErrFormat)
		}
		return s.unfold(ctx, st)
	default:
		return "", nil, unknown(magic)
	}
	return f, img, err
}

// unfold opens what a flattened file holds.
func (s *Source) unfold(ctx context.Context, st storage) (Format, image, error) {
	inner, err := openFlat(ctx, st)
	if err != nil {
		return "", nil, err
	}
	magic := make([]byte, 16)
	n, err := readFull(inner, magic, 0)
	if err != nil {
		return "", nil, fmt.Errorf("what the flattened file holds: %w", err)
	}
	return s.open(ctx, inner, magic[:n])
}

// unknown says what a file is when it is not a dump but easily taken for one.
func unknown(magic []byte) error {
	what := "starts with " + fmt.Sprintf("%q", magic[:min(len(magic), 8)])
	switch {
	case len(magic) >= 4 && binary.BigEndian.Uint32(magic) == 0x514649fb:
		what = "this is a qcow2 disk image"
	case len(magic) >= 4 && string(magic[:4]) == "PAGE":
		what = "this is a Windows crash dump"
	case len(magic) >= 4 && string(magic[:4]) == "QEVM":
		what = "this is a QEMU migration stream"
	case len(magic) >= 4 && string(magic[:4]) == "AVML":
		what = "this is AVML's compressed format, of which avml-convert makes LiME"
	case len(magic) >= 8 && string(magic[:8]) == diskMagic:
		what = "this is a diskdump of the time before kdump"
	}
	return fmt.Errorf("%w: %s; %s; raw memory needs its layout told", ErrFormat, lookedFor, what)
}
