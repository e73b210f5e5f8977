package mem

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// Bundle is a set of pages with a description: what one command read of a machine.
//
// On disk it is the magic and version below, then one zstd frame that holds
//
//	uint32 length of Meta, Meta
//	uint32 number of pages, then for each, by ascending address:
//	       uint64 address, uint8 kind, uint16 valid bytes, those bytes unless zero
//	32 bytes SHA-256 of everything before them in the frame
//
// with integers little-endian. The hash tells damage, not forgery.
type Bundle struct {
	Meta  []byte
	Pages map[Phys]BundlePage
}

// BundlePage is one page of a bundle: its valid bytes, and why there are fewer
// than a page.
type BundlePage struct {
	Data []byte
	Err  error // ErrNotRAM, ErrNotPresent or another fault's cause when len(Data) < PageSize
}

// Limits of a bundle. They bound what decoding a hostile file allocates.
const (
	MaxBundlePages = 1 << 17 // 512 MiB of memory
	MaxBundleMeta  = 1 << 20

	bundleMagic   = "UMBRA-PB"
	bundleVersion = 1
)

// Kinds of page in a bundle.
const (
	bundleData = iota
	bundleZero // as many zeros as there are valid bytes
)

// ErrBundle is a file that is not an intact bundle.
var ErrBundle = errors.New("not an intact page bundle")

// IsBundle tells whether a file that begins with head is a bundle.
func IsBundle(head []byte) bool { return bytes.HasPrefix(head, []byte(bundleMagic)) }

// Encode writes the bundle.
func (b *Bundle) Encode(w io.Writer) error {
	if len(b.Meta) > MaxBundleMeta || len(b.Pages) > MaxBundlePages {
		return fmt.Errorf("bundle of %d pages, %d bytes of description: too large", len(b.Pages), len(b.Meta))
	}
	if _, err := w.Write(binary.LittleEndian.AppendUint32([]byte(bundleMagic), bundleVersion)); err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return err
	}
	if err := b.body(z); err != nil {
		return errors.Join(err, z.Close())
	}
	return z.Close()
}

func (b *Bundle) body(z io.Writer) error {
	sum := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(z, sum), 1<<16)
	le := binary.LittleEndian
	w.Write(le.AppendUint32(nil, uint32(len(b.Meta))))
	w.Write(b.Meta)
	w.Write(le.AppendUint32(nil, uint32(len(b.Pages))))
	addrs := make([]Phys, 0, len(b.Pages))
	for a := range b.Pages {
		addrs = append(addrs, a)
	}
	slices.Sort(addrs)
	for _, a := range addrs {
		data := b.Pages[a].Data
		kind := byte(bundleData)
		if isZero(data) {
			kind = bundleZero
		}
		w.Write(le.AppendUint64(nil, uint64(a)))
		w.Write(le.AppendUint16([]byte{kind}, uint16(len(data))))
		if kind == bundleData {
			w.Write(data)
		}
	}
	if err := w.Flush(); err != nil { // holds the first error of all writes
		return err
	}
	_, err := z.Write(sum.Sum(nil))
	return err
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// DecodeBundle reads a bundle. A file that is damaged or ends early gives
// ErrBundle and no bundle.
func DecodeBundle(r io.Reader) (*Bundle, error) {
	head := make([]byte, len(bundleMagic)+4)
	if _, err := io.ReadFull(r, head); err != nil || !IsBundle(head) {
		return nil, fmt.Errorf("%w: it does not begin with %q", ErrBundle, bundleMagic)
	}
	if v := binary.LittleEndian.Uint32(head[len(bundleMagic):]); v != bundleVersion {
		return nil, fmt.Errorf("%w: version %d, not %d", ErrBundle, v, bundleVersion)
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	d := decoder{r: bufio.NewReaderSize(z, 1<<16), sum: sha256.New()}
	b := d.bundle()
	if d.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBundle, d.err)
	}
	return b, nil
}

// decoder reads the frame. Its first error sticks.
type decoder struct {
	r   *bufio.Reader
	sum hash.Hash
	err error
}

// take returns the next n bytes, in a buffer of their own.
func (d *decoder) take(n int) []byte {
	b := make([]byte, n)
	if d.err != nil {
		return b
	}
	if _, err := io.ReadFull(d.r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		d.err = err
		return b
	}
	d.sum.Write(b)
	return b
}

// count reads a length and holds it to a limit.
func (d *decoder) count(limit int, what string) int {
	n := binary.LittleEndian.Uint32(d.take(4))
	if d.err == nil && n > uint32(limit) {
		d.err = fmt.Errorf("%d %s, more than %d", n, what, limit)
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

func (d *decoder) bundle() *Bundle {
	b := &Bundle{Pages: make(map[Phys]BundlePage)}
	b.Meta = d.take(d.count(MaxBundleMeta, "bytes of description"))
	n := d.count(MaxBundlePages, "pages")
	next := Phys(0)
	for i := 0; i < n && d.err == nil; i++ {
		head := d.take(11)
		addr, kind, size := Phys(binary.LittleEndian.Uint64(head)), head[8], int(binary.LittleEndian.Uint16(head[9:]))
		switch {
		case d.err != nil:
			return nil
		case addr != addr.Page() || i > 0 && addr < next || size > PageSize || kind > bundleZero:
			d.err = fmt.Errorf("page %d of %d at %v: bad header", i, n, addr)
			return nil
		}
		next = addr + PageSize
		p := BundlePage{}
		if kind == bundleZero {
			p.Data = zeros[:size:size]
		} else {
			p.Data = d.take(size)
		}
		if size < PageSize {
			p.Err = ErrNotRAM
		}
		b.Pages[addr] = p
	}
	want := d.sum.Sum(nil)
	got := d.take(len(want))
	if d.err == nil && !bytes.Equal(got, want) {
		d.err = errors.New("its checksum is wrong")
	}
	if _, err := d.r.ReadByte(); d.err == nil && err != io.EOF {
		d.err = errors.New("bytes follow its end")
	}
	return b
}

var zeros [PageSize]byte
