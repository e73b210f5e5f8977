package dump

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// storage is the bytes a format is decoded from: a file, or what a flattened
// file unfolds to.
type storage interface {
	// ReadAt is io.ReaderAt's.
	ReadAt(buf []byte, off int64) (int, error)

	// size is the length in bytes at the time of opening.
	size() int64

	// nextData returns the first run of bytes in [off, end) that may differ from
	// zero, and false when there is none.
	nextData(off, end int64) (from, to int64, ok bool)

	// cut returns how many bytes are known to be missing, whatever the format.
	cut() uint64
}

// file is an open dump. It is read with pread: a file that shrinks ends in a
// short read, where a mapping would raise SIGBUS, and a hole in it stays a hole.
type file struct {
	*os.File
	length int64
}

func openFile(path string) (*file, error) {
	// Without O_NONBLOCK, opening a FIFO would wait for its writer for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open dump: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("open dump %s: %w: it is no regular file", path, ErrFormat)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{File: f, length: st.Size()}, nil
}

func (f *file) size() int64 { return f.length }
func (f *file) cut() uint64 { return 0 }

func (f *file) nextData(off, end int64) (int64, int64, bool) {
	if off >= end {
		return 0, 0, false
	}
	from, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		// No data up to the end of the file; what lies behind it is not zeros.
		if end > f.length {
			return max(off, f.length), end, true
		}
		return 0, 0, false
	}
	if err != nil || from < off {
		return off, end, true // the file system cannot tell
	}
	if from >= end {
		return 0, 0, false
	}
	to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	if err != nil || to <= from || to > end || to >= f.length {
		to = end
	}
	return from, to, true
}

// readFull fills buf from off on. Where st ends first, the error is ErrTruncated.
func readFull(st storage, buf []byte, off int64) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %#x in the file", ErrFormat, uint64(off))
	}
	n, err := st.ReadAt(buf, off)
	switch {
	case n == len(buf):
		return n, nil
	case errors.Is(err, io.EOF):
		return n, ErrTruncated
	}
	return n, err
}

// readBounded returns size bytes from off on, none when size is above limit or
// the bytes are not all there. It allocates no more than st has.
func readBounded(st storage, what string, off, size, limit uint64) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d are believed", ErrFormat, what, size, limit)
	}
	if length := uint64(st.size()); off > length || size > length-off {
		return nil, fmt.Errorf("%s, %d bytes at offset %#x: %w", what, size, off, ErrTruncated)
	}
	buf := make([]byte, size)
	if _, err := readFull(st, buf, int64(off)); err != nil {
		return nil, fmt.Errorf("%s at offset %#x: %w", what, off, err)
	}
	return buf, nil
}
