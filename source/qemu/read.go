package qemu

import (
	"context"
	"errors"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/mem"
)

var errClosed = errors.New("the source is closed")

// maxPiece is how much is read, in bytes, before looking whether the caller still
// wants it.
const maxPiece = 4 << 20

// maxIovec is the most ranges one process_vm_readv takes (UIO_MAXIOV).
const maxIovec = 1024

// batch collects what goes into the next process_vm_readv.
type batch struct {
	local  []unix.Iovec
	remote []unix.RemoteIovec
	pieces []piece
	bytes  int
	denied bool // process_vm_readv is not allowed: /proc/PID/mem is read instead
}

// piece is a part of a read that lies in one region.
type piece struct {
	read *mem.Read
	at   int // where in read.Buf it goes
	buf  []byte
	ram  *processMemory
	off  uint64
}

// ReadPhys reads guest-physical memory. It fails with mem.ErrGone when the QEMU
// process exits before all of it is read.
func (s *Source) ReadPhys(ctx context.Context, reads []mem.Read) error {
	if s.p == nil {
		return errClosed
	}
	defer s.batch.reset()
	for i := 0; i < len(reads); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := s.readRun(ctx, reads[i:])
		if err != nil {
			return err
		}
		if n > 0 {
			i += n
			continue
		}
		if err := s.read(ctx, &reads[i]); err != nil {
			return err
		}
		i++
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	return s.checkAlive()
}

// aliveFor is how long a process that was seen to run is taken to run on: looking
// costs as much as reading a page.
const aliveFor = time.Millisecond

// checkAlive returns mem.ErrGone when the QEMU process has ended. RAM in a file
// outlives its machine: what was read is the machine's only if that still runs. The
// same goes for a PID that now means another process.
func (s *Source) checkAlive() error {
	if time.Since(s.seen) < aliveFor {
		return nil
	}
	if !s.p.alive() {
		return s.p.gone()
	}
	s.seen = time.Now()
	return nil
}

// maxRun is the most reads joined into one system call.
const maxRun = 64

// readRun reads, with one system call, the first reads where they follow each other
// in one file. It returns how many it did: none when there are not two of them, or
// when not all could be read, which is for reading them one by one to tell.
func (s *Source) readRun(ctx context.Context, reads []mem.Read) (int, error) {
	n, size := 1, uint64(len(reads[0].Buf))
	for n < min(len(reads), maxRun) {
		next, ok := reads[0].Addr.Add(size)
		if !ok || reads[n].Addr != next || len(reads[n].Buf) == 0 || size > maxPiece {
			break
		}
		size += uint64(len(reads[n].Buf))
		n++
	}
	reg := s.find(reads[0].Addr)
	if n == 1 || reg == nil || size > uint64(reg.End()-reads[0].Addr) {
		return 0, nil
	}
	file, ok := reg.ram.(fileRAM)
	if !ok {
		return 0, nil
	}
	if err := s.flush(ctx); err != nil { // reads are done in their order
		return 0, err
	}
	var bufs [maxRun][]byte
	for i := range n {
		bufs[i] = reads[i].Buf
	}
	got, err := unix.Preadv(file.f.fd, bufs[:n], int64(reg.off+uint64(reads[0].Addr-reg.Start)))
	if err != nil || uint64(got) != size {
		return 0, nil
	}
	for i := range n {
		reads[i].N, reads[i].Err = len(reads[i].Buf), nil
	}
	return n, nil
}

// read reads what files hold of r and puts the rest into the batch.
func (s *Source) read(ctx context.Context, r *mem.Read) error {
	r.N, r.Err = 0, nil
	at := r.Addr
	for r.N < len(r.Buf) {
		reg := s.find(at)
		if reg == nil {
			r.Err = fault(at, mem.ErrNotRAM)
			return nil
		}
		in := uint64(at - reg.Start)
		buf := r.Buf[r.N:]
		if left := reg.Size - in; uint64(len(buf)) > left {
			buf = buf[:left]
		}
		buf = buf[:min(len(buf), maxPiece)]
		n := len(buf)
		p := piece{read: r, at: r.N, buf: buf, off: reg.off + in}
		if pr, ok := reg.ram.(processRAM); ok {
			p.ram = pr.processMemory
			if err := s.add(ctx, p); err != nil {
				return err
			}
		} else {
			if err := s.flush(ctx); err != nil {
				return err
			}
			if r.Err != nil {
				return nil
			}
			m, err := reg.ram.readAt(buf, p.off)
			if errors.Is(err, mem.ErrGone) {
				return err
			}
			if err != nil {
				r.N += m
				r.Err = fault(at+mem.Phys(m), err)
				return nil
			}
		}
		if r.Err != nil { // the batch went out, and r failed in it
			return nil
		}
		r.N += n
		var ok bool
		if at, ok = at.Add(uint64(n)); !ok && r.N < len(r.Buf) {
			r.Err = fault(^mem.Phys(0), mem.ErrNotRAM)
			return nil
		}
		if n == maxPiece {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// find returns the region that holds a, or nil.
func (s *Source) find(a mem.Phys) *region {
	i := sort.Search(len(s.regions), func(i int) bool { return s.regions[i].Start > a })
	if i == 0 || a-s.regions[i-1].Start >= mem.Phys(s.regions[i-1].Size) {
		return nil
	}
	return &s.regions[i-1]
}

func fault(at mem.Phys, err error) *mem.Fault {
	return &mem.Fault{Layer: mem.LayerPhysical, Addr: uint64(at), Err: err}
}

// add puts p into the batch and sends that when it is full.
func (s *Source) add(ctx context.Context, p piece) error {
	b := &s.batch
	iov := unix.Iovec{Base: &p.buf[0]}
	iov.SetLen(len(p.buf))
	b.local = append(b.local, iov)
	b.remote = append(b.remote, unix.RemoteIovec{Base: uintptr(p.off), Len: len(p.buf)})
	b.pieces = append(b.pieces, p)
	b.bytes += len(p.buf)
	if len(b.pieces) < maxIovec && b.bytes < maxPiece {
		return nil
	}
	return s.flush(ctx)
}

// flush reads all pieces of the batch. A piece that cannot be read cuts its read
// short; the others are unaffected.
func (s *Source) flush(ctx context.Context) error {
	b := &s.batch
	for i := 0; i < len(b.pieces); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := 0, error(unix.EPERM)
		if !b.denied {
			n, err = unix.ProcessVMReadv(s.p.pid, b.local[i:], b.remote[i:], 0)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			n = 0
			b.denied = b.denied || err == unix.EPERM || err == unix.ENOSYS
		}
		for i < len(b.pieces) && n >= len(b.pieces[i].buf) {
			n -= len(b.pieces[i].buf)
			i++
		}
		if i == len(b.pieces) {
			break
		}
		// The call stopped inside piece i, or is not allowed at all: this one is
		// read by itself, which also says why it fails.
		if err := readPiece(&b.pieces[i]); err != nil {
			return err
		}
		i++
	}
	b.reset()
	return nil
}

// readPiece reads p by itself. What cannot be read cuts its read short; only the end
// of the process is an error.
func readPiece(p *piece) error {
	n, err := p.ram.readAt(p.buf, p.off)
	if err == nil || errors.Is(err, mem.ErrGone) {
		return err
	}
	if r := p.read; r.Err == nil || p.at+n < r.N {
		r.N = p.at + n
		r.Err = fault(r.Addr+mem.Phys(r.N), err)
	}
	return nil
}

// reset empties the batch and forgets the callers' buffers.
func (b *batch) reset() {
	clear(b.local)
	clear(b.pieces)
	b.local, b.remote, b.pieces, b.bytes = b.local[:0], b.remote[:0], b.pieces[:0], 0
}

// Data returns the first run of RAM at or after from that may hold something
// else than zeros.
func (s *Source) Data(from mem.Phys) (mem.Extent, bool) {
	for i := range s.regions {
		r := &s.regions[i]
		if r.End()-1 < from {
			continue
		}
		at := max(from, r.Start)
		start, end := r.ram.data(r.off+uint64(at-r.Start), r.off+r.Size)
		if start < end {
			return mem.Extent{Start: r.Start + mem.Phys(start-r.off), Size: end - start}, true
		}
	}
	return mem.Extent{}, false
}
