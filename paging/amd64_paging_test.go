package paging

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/umbravm/umbra/mem"
)

// ram is a few pages of memory from address 0 on.
type ram []byte

func (m ram) ReadPhys(_ context.Context, reads []mem.Read) error {
	for i := range reads {
		r := &reads[i]
		r.N, r.Err = 0, nil
		if r.Addr < mem.Phys(len(m)) {
			r.N = copy(r.Buf, m[r.Addr:])
		}
		if r.N < len(r.Buf) {
			r.Err = &mem.Fault{Layer: mem.LayerPhysical, Addr: uint64(r.Addr) + uint64(r.N), Err: mem.ErrNotRAM}
		}
	}
	return nil
}

func (m ram) entry(table, i int, e uint64) {
	binary.LittleEndian.PutUint64(m[table*mem.PageSize+i*8:], e)
}

// tables has four levels in pages 0 to 3, for user space's lowest addresses and for
// the kernel's at kernelStart; leaves are set by the tests.
func tables() ram {
	m := make(ram, 4*mem.PageSize)
	for level := range 2 {
		m.entry(level, 0, uint64(level+1)<<12|7)
	}
	m.entry(0, 256, 1<<12|7)
	m.entry(2, 0, 3<<12|7)
	return m
}

const kernelStart = mem.Virt(0xffff800000000000)

// TestWalk translates addresses by entries of every kind.
func TestWalk(t *testing.T) {
	const frame = 0x12345000
	m := tables()
	m.entry(3, 1, frame|7)
	m.entry(3, 2, 0)
	m.entry(3, 3, ^uint64(frame)&entryAddr|entryNone|1<<5) // taken away to see who uses it
	m.entry(3, 4, 0xabc<<14|2<<9)                          // swapped out
	m.entry(2, 1, 0x40000000|7|entryLarge)
	m.entry(2, 2, ^uint64(0x40200000)&entryAddr|entryNone|entryLarge)
	m.entry(2, 3, ^uint64(0x40400000)&entryAddr|entryLarge) // while it is split
	m.entry(2, 4, 3<<12|entryNone)                          // a table is never kept so
	m.entry(1, 1, 0x80000000|7|entryLarge)
	for _, c := range []struct {
		a    mem.Virt
		want mem.Phys
		size uint64
		err  error
	}{
		{0x1234, frame + 0x234, 1 << 12, nil},
		{0x2000, 0, 0, mem.ErrNotPresent},
		{0x3456, frame + 0x456, 1 << 12, nil},
		{0x4000, 0, 0, mem.ErrNotPresent},
		{0x212345, 0x40012345, 1 << 21, nil},
		{0x412345, 0x40212345, 1 << 21, nil},
		{0x612345, 0x40412345, 1 << 21, nil},
		{0x800000, 0, 0, mem.ErrNotPresent},
		{0x40123456, 0x80123456, 1 << 30, nil},
		{kernelStart + 0x1234, frame + 0x234, 1 << 12, nil},
		{kernelStart + 0x3456, 0, 0, mem.ErrNotPresent}, // the kernel's own are really gone
		{kernelStart + 0x412345, 0, 0, mem.ErrNotPresent},
		{0x800000000000, 0, 0, mem.ErrBadAddress},
	} {
		sp := New(mem.NewSnapshot(context.Background(), m, mem.Options{}), 0, 4)
		p, size, err := sp.Walk(c.a)
		if p != c.want || size != c.size || !errors.Is(err, c.err) {
			t.Errorf("%v: %v, %d bytes, %v; want %v, %d, %v", c.a, p, size, err, c.want, c.size, c.err)
		}
	}
}

// FuzzWalk asserts that any tables give an address or an error, never both.
func FuzzWalk(f *testing.F) {
	f.Add([]byte(tables()), uint64(0x1234))
	self := make(ram, mem.PageSize)
	self.entry(0, 0, 7) // a table that is its own
	f.Add([]byte(self), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, a uint64) {
		sp := NewCached(mem.NewSnapshot(context.Background(), ram(b), mem.Options{}), 0, 4)
		p, size, err := sp.Walk(mem.Virt(a))
		if (err == nil) != (size > 0) || err != nil && p != 0 {
			t.Fatalf("%#x: %v, %d bytes, %v", a, p, size, err)
		}
		if len(sp.Tables()) > 4 {
			t.Fatalf("%d tables", len(sp.Tables()))
		}
	})
}
