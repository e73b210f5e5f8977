package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// copyChunk is how much memory is read at once, in bytes.
const copyChunk = 1 << 20

// maxRuns bounds the pieces into which unreadable memory may break a dump.
const maxRuns = 1 << 19

var zeroPage [mem.PageSize]byte

// copier writes memory to a file: the readable runs one after the other, each
// without the pages that are zeros.
type copier struct {
	src      source.Source
	w        target
	enc      encoder
	progress func(done, total uint64)

	runs   []segment // the last one grows while open is set
	open   bool
	pos    uint64 // end of the file
	done   uint64
	total  uint64
	report Report
	buf    [copyChunk]byte
}

// fill writes the whole file and syncs it. The header comes last, after what it
// vouches for is on the disk.
func (c *copier) fill(ctx context.Context) error {
	layout := c.src.Info().Layout
	c.total = layout.Size()
	for _, e := range layout {
		if err := c.extent(ctx, e); err != nil {
			return err
		}
	}
	if err := c.closeRun(); err != nil {
		return err
	}
	if len(c.runs) == 0 {
		return errors.Join(errors.New("none of the machine's memory can be read"), c.report.Fault)
	}
	if err := c.w.Truncate(int64(c.pos)); err != nil {
		return err
	}
	if err := c.w.Sync(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.enc.finish(c.w, c.runs, c.pos); err != nil {
		return err
	}
	for _, g := range c.runs {
		c.report.Layout = append(c.report.Layout, mem.Extent{Start: g.start, Size: g.size})
	}
	return c.w.Sync()
}

// extent copies e, leaving out what the source knows to be zeros.
func (c *copier) extent(ctx context.Context, e mem.Extent) error {
	finder, _ := c.src.(source.HoleFinder)
	for e.Size > 0 {
		data := e
		if finder != nil {
			data = mem.Extent{Start: e.End()}
			if d, ok := finder.Data(e.Start); ok && d.Start < e.End() {
				data.Start = max(d.Start, e.Start)
				data.Size = min(uint64(d.End()-data.Start), uint64(e.End()-data.Start))
			}
		}
		if hole := uint64(data.Start - e.Start); hole > 0 {
			if err := c.grow(e.Start, hole); err != nil {
				return err
			}
			c.tell(hole)
		} else if data.Size == 0 {
			return fmt.Errorf("the source says that nothing is at %v", e.Start)
		}
		if err := c.data(ctx, data); err != nil {
			return err
		}
		n := uint64(data.End() - e.Start)
		e = mem.Extent{Start: e.Start + mem.Phys(n), Size: e.Size - n}
	}
	return nil
}

// data reads and writes e.
func (c *copier) data(ctx context.Context, e mem.Extent) error {
	for e.Size > 0 {
		// Chunks end at their own multiples, so pages are read whole.
		n := min(e.Size, copyChunk-uint64(e.Start)%copyChunk)
		if err := ctx.Err(); err != nil {
			return err
		}
		reads := []mem.Read{{Addr: e.Start, Buf: c.buf[:n]}}
		if err := c.src.ReadPhys(ctx, reads); err != nil {
			return err
		}
		if reads[0].Err != nil || uint64(reads[0].N) < n {
			reads = pages(e.Start, c.buf[:n])
			if err := c.src.ReadPhys(ctx, reads); err != nil {
				return err
			}
		}
		for _, r := range reads {
			if err := c.store(r); err != nil {
				return err
			}
		}
		c.tell(n)
		e = mem.Extent{Start: e.Start + mem.Phys(n), Size: e.Size - n}
	}
	return nil
}

// pages is one read per page of buf, so that one that fails costs no other.
func pages(addr mem.Phys, buf []byte) (reads []mem.Read) {
	for len(buf) > 0 {
		n := min(uint64(len(buf)), mem.PageSize-uint64(addr)%mem.PageSize)
		reads = append(reads, mem.Read{Addr: addr, Buf: buf[:n]})
		addr, buf = addr+mem.Phys(n), buf[n:]
	}
	return reads
}

// store appends what was read, or notes that it could not be.
func (c *copier) store(r mem.Read) error {
	if r.Err != nil || r.N < len(r.Buf) {
		c.report.Unreadable += uint64(len(r.Buf))
		if c.report.Fault == nil {
			c.report.Fault = r.Err
		}
		return nil
	}
	at := r.Addr
	for buf := r.Buf; len(buf) > 0; {
		n, zero := stretch(buf)
		start, err := c.place(at, uint64(n))
		if err != nil {
			return err
		}
		if !zero {
			if _, err := c.w.WriteAt(buf[:n], int64(start)); err != nil {
				return err
			}
			c.report.Stored += uint64(n)
		}
		at, buf = at+mem.Phys(n), buf[n:]
	}
	return nil
}

// stretch returns the length of the pages at the start of buf that are all
// zeros, or all not.
func stretch(buf []byte) (n int, zero bool) {
	for n < len(buf) {
		k := min(mem.PageSize, len(buf)-n)
		z := bytes.Equal(buf[n:n+k], zeroPage[:k])
		if n > 0 && z != zero {
			break
		}
		zero = z
		n += k
	}
	return n, zero
}

// grow makes size zeros at addr part of the file.
func (c *copier) grow(addr mem.Phys, size uint64) error {
	_, err := c.place(addr, size)
	return err
}

// place makes room for size bytes at addr and returns where they belong.
func (c *copier) place(addr mem.Phys, size uint64) (uint64, error) {
	if n := len(c.runs); !c.open || c.runs[n-1].end() != addr {
		if err := c.closeRun(); err != nil {
			return 0, err
		}
		if n == maxRuns {
			return 0, fmt.Errorf("what can be read is in more than %d pieces; the first fault was %w", maxRuns, c.report.Fault)
		}
		pos, err := c.enc.begin(addr, c.pos)
		if err != nil {
			return 0, err
		}
		c.runs = append(c.runs, segment{start: addr, off: pos})
		c.open, c.pos = true, pos
	}
	at := c.pos
	c.runs[len(c.runs)-1].size += size
	c.pos += size
	return at, nil
}

func (c *copier) closeRun() error {
	if !c.open {
		return nil
	}
	c.open = false
	return c.enc.end(c.w, c.runs[len(c.runs)-1])
}

func (c *copier) tell(n uint64) {
	c.done += n
	if c.progress != nil {
		c.progress(c.done, c.total)
	}
}
