package dump

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/anchore/go-lzo"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// codec undoes the compression of pages. Its zero value is ready. No decoder
// writes or allocates more than the page it is given, whatever its input says.
type codec struct {
	in   bytes.Reader
	zlib io.ReadCloser
	zstd *zstd.Decoder
}

var errPageSize = errors.New("it does not unfold to one page")

// decode fills page from packed. Anything but exactly one page is an error.
func (c *codec) decode(page, packed []byte, flags uint32) error {
	var n int
	var err error
	switch flags {
	case pageRaw:
		n = copy(page, packed)
	case pageZlib:
		n, err = c.inflate(page, packed)
	case pageLZO:
		n, err = lzo.Decompress(packed, page)
	case pageSnappy:
		n, err = unsnap(page, packed)
	case pageZstd:
		n, err = c.unzstd(page, packed)
	default:
		return fmt.Errorf("unknown compression %#x", flags)
	}
	if err == nil && n != len(page) {
		err = errPageSize
	}
	return err
}

func (c *codec) inflate(page, packed []byte) (int, error) {
	c.in.Reset(packed)
	var err error
	if c.zlib == nil {
		c.zlib, err = zlib.NewReader(&c.in)
	} else {
		err = c.zlib.(zlib.Resetter).Reset(&c.in, nil)
	}
	if err != nil {
		return 0, err
	}
	n, err := io.ReadFull(c.zlib, page)
	if err != nil {
		return n, err
	}
	var more [1]byte // the checksum is looked at when the end is read
	if k, err := c.zlib.Read(more[:]); k != 0 || err != io.EOF {
		return n + k, errors.Join(errPageSize, err)
	}
	return n, nil
}

func unsnap(page, packed []byte) (int, error) {
	n, err := snappy.DecodedLen(packed)
	if err != nil || n != len(page) {
		return n, err
	}
	out, err := snappy.Decode(page, packed)
	return copy(page, out), err
}

func (c *codec) unzstd(page, packed []byte) (int, error) {
	if c.zstd == nil {
		var err error
		c.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(1<<20))
		if err != nil {
			return 0, err
		}
	}
	out, err := c.zstd.DecodeAll(packed, page[:0:len(page)])
	return copy(page, out), err
}

func (c *codec) close() {
	if c.zstd != nil {
		c.zstd.Close()
		c.zstd = nil
	}
}
