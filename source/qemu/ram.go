package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/mem"
)

// ram is host memory that is guest RAM. Offsets are the backend's own, in bytes.
type ram interface {
	// readAt fills buf from off on, and returns how much it filled and, when that is
	// less, why.
	readAt(buf []byte, off uint64) (int, error)

	// data returns the first run at or after off, and before end, that may hold
	// something else than zeros. No run is start == end.
	data(off, end uint64) (start, stop uint64)

	close()
}

// fileRAM is RAM in a file that QEMU maps shared. It is read with pread: a mapping
// of ours would allocate host memory for every hole it touches, and would raise
// SIGBUS when the file shrinks.
type fileRAM struct {
	f    handle
	what string // for people
}

// handle is an open file and its descriptor, since asking the file for that costs a
// system call each time (since Go 1.25), as much as a read.
type handle struct {
	file *os.File
	fd   int
}

func newHandle(f *os.File) handle { return handle{f, int(f.Fd())} }

func (r fileRAM) readAt(buf []byte, off uint64) (int, error) {
	n, err := pread(r.f.fd, buf, off)
	if err != nil {
		return n, fmt.Errorf("RAM file: %w", err)
	}
	return n, nil
}

func (r fileRAM) data(off, end uint64) (start, stop uint64) {
	return seekData(r.f.fd, off, end)
}

func (r fileRAM) close() { r.f.file.Close() }

// pread reads until buf is full. A file that ends early is io.ErrUnexpectedEOF.
func pread(fd int, buf []byte, off uint64) (int, error) {
	for n := 0; ; {
		if n == len(buf) {
			return n, nil
		}
		m, err := unix.Pread(fd, buf[n:], int64(off)+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, err
		case m == 0:
			return n, io.ErrUnexpectedEOF
		}
		n += m
	}
}

// seekData finds data in a sparse file. A file system that knows no holes says all
// of it is data.
func seekData(fd int, off, end uint64) (start, stop uint64) {
	s, err := unix.Seek(fd, int64(off), unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return end, end
	case err != nil:
		return off, end
	case uint64(s) >= end:
		return end, end
	}
	e, err := unix.Seek(fd, s, unix.SEEK_HOLE)
	if err != nil || uint64(e) > end {
		return uint64(s), end
	}
	return uint64(s), uint64(e)
}

// processRAM is RAM in QEMU's own private memory. Offsets are host-virtual
// addresses. Reads of many ranges go through one process_vm_readv (see batch).
type processRAM struct{ *processMemory }

func (r processRAM) close() {}

// processMemory is the address space of the QEMU process. The descriptors keep
// working after the privilege to open them is gone, and end with the process.
type processMemory struct {
	pid     int
	mem     handle   // /proc/PID/mem
	pagemap *os.File // /proc/PID/pagemap, nil where it may not be read
}

func openProcessMemory(p *process) (*processMemory, error) {
	f, err := os.Open(p.path("mem"))
	if err != nil {
		return nil, err
	}
	pagemap, err := os.Open(p.path("pagemap"))
	if err != nil {
		pagemap = nil
	}
	return &processMemory{pid: p.pid, mem: newHandle(f), pagemap: pagemap}, nil
}

func (m *processMemory) release() {
	m.mem.file.Close()
	if m.pagemap != nil {
		m.pagemap.Close()
	}
}

// gone is what the end of one of the process's files means: its memory has been
// given back, which happens a moment before the process counts as exited.
func (m *processMemory) gone() error {
	return fmt.Errorf("QEMU process %d has exited: %w", m.pid, mem.ErrGone)
}

func (m *processMemory) readAt(buf []byte, off uint64) (int, error) {
	n, err := pread(m.mem.fd, buf, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return n, m.gone()
	}
	if err != nil {
		return n, fmt.Errorf("memory of process %d: %w", m.pid, err)
	}
	return n, nil
}

func (m *processMemory) data(off, end uint64) (start, stop uint64) {
	return m.run(off, end, func(e uint64) bool { return e&(pagePresent|pageSwapped) != 0 })
}

// Bits of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagePresent  = 1 << 63
	pageSwapped  = 1 << 62
	pageFromFile = 1 << 61 // a page of the file, or shared

	hostPageShift = 12
	hostPage      = 1 << hostPageShift
)

// entries reads the pagemap entries of the host pages from page on.
func (m *processMemory) entries(buf []byte, page uint64) (int, error) {
	if m.pagemap == nil {
		return 0, errors.New("pagemap may not be read")
	}
	n, err := unix.Pread(int(m.pagemap.Fd()), buf, int64(page*8))
	return n / 8, err
}

// run finds the first run of pages in [off, end) whose entry satisfies has. Where
// the pagemap cannot be read everything satisfies it.
func (m *processMemory) run(off, end uint64, has func(entry uint64) bool) (start, stop uint64) {
	var buf [32 << 10]byte
	inRun := false
	for page, last := off>>hostPageShift, (end+hostPage-1)>>hostPageShift; page < last; {
		n, err := m.entries(buf[:min(uint64(len(buf)), (last-page)*8)], page)
		if err != nil || n == 0 {
			if !inRun {
				start = max(off, page<<hostPageShift)
			}
			return start, end
		}
		for i := range n {
			if has(binary.LittleEndian.Uint64(buf[i*8:])) == inRun {
				continue
			}
			at := (page + uint64(i)) << hostPageShift
			if inRun {
				return start, min(at, end)
			}
			start, inRun = max(off, at), true
		}
		page += uint64(n)
	}
	if !inRun {
		return end, end
	}
	return start, end
}

// cowRAM is RAM in a file that QEMU maps privately: pages the guest has written are
// QEMU's own, the others still the file's. Offsets are host-virtual addresses.
// Reading an untouched page through the process would fill a hole of the file, so
// those are read from the file.
type cowRAM struct {
	*processMemory
	file  handle
	start uint64 // host-virtual address the file's offset is mapped at
	off   uint64
}

func (r cowRAM) close() { r.file.file.Close() }

func (r cowRAM) readAt(buf []byte, off uint64) (int, error) {
	var entries [256 * 8]byte
	for n := 0; n < len(buf); {
		at := off + uint64(n)
		first, last := at>>hostPageShift, (off+uint64(len(buf))-1)>>hostPageShift
		count, err := r.entries(entries[:min(uint64(len(entries)), (last-first+1)*8)], first)
		if err == nil && count == 0 {
			return n, r.gone()
		}
		if err != nil {
			return n, fmt.Errorf("memory of process %d: cannot tell the guest's pages from the file's: pagemap: %w", r.pid, err)
		}
		for i := 0; i < count; {
			own := ownPage(binary.LittleEndian.Uint64(entries[i*8:]))
			for i++; i < count && ownPage(binary.LittleEndian.Uint64(entries[i*8:])) == own; i++ {
			}
			at := off + uint64(n)
			end := min((first+uint64(i))<<hostPageShift, off+uint64(len(buf)))
			m, err := r.readRun(buf[n:n+int(end-at)], at, own)
			if n += m; err != nil {
				return n, err
			}
		}
	}
	return len(buf), nil
}

// readRun reads pages that are all the process's own, or all the file's.
func (r cowRAM) readRun(buf []byte, at uint64, own bool) (int, error) {
	if own {
		return r.processMemory.readAt(buf, at)
	}
	n, err := pread(r.file.fd, buf, at-r.start+r.off)
	if err != nil {
		return n, fmt.Errorf("RAM file: %w", err)
	}
	return n, nil
}

// ownPage tells whether a page of a private file mapping is the process's own copy.
func ownPage(entry uint64) bool {
	return entry&pageSwapped != 0 || entry&pagePresent != 0 && entry&pageFromFile == 0
}

func (r cowRAM) data(off, end uint64) (start, stop uint64) {
	s1, e1 := r.run(off, end, ownPage)
	s2, e2 := seekData(r.file.fd, off-r.start+r.off, end-r.start+r.off)
	s2, e2 = s2-r.off+r.start, e2-r.off+r.start
	if s1 < e1 && (s2 == e2 || s1 <= s2) {
		return s1, e1
	}
	return s2, e2
}
