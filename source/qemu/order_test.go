package qemu

import (
	"context"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/mem"
)

// witness is RAM that looks, when it is read, whether an earlier read is done.
type witness struct {
	earlier []byte
	saw     byte
}

func (w *witness) readAt(buf []byte, _ uint64) (int, error) {
	w.saw = w.earlier[0]
	return len(buf), nil
}
func (w *witness) data(off, end uint64) (start, stop uint64) { return off, end }
func (w *witness) close()                                    {}

// TestReadOrder reads from two kinds of RAM in one call. Reads are done in the order
// given: what is read again to see whether it moved must not be read first.
func TestReadOrder(t *testing.T) {
	own, err := unix.Mmap(-1, 0, mem.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(own)
	own[0] = 7
	p, err := openProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	memory, err := openProcessMemory(p)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.release()
	first, second := make([]byte, 8), make([]byte, 8)
	w := &witness{earlier: first}
	s := &Source{p: p, regions: []region{
		{Extent: mem.Extent{Start: 0, Size: mem.PageSize}, ram: processRAM{memory}, off: uint64(reflect.ValueOf(own).Pointer())},
		{Extent: mem.Extent{Start: mem.PageSize, Size: mem.PageSize}, ram: w},
	}}
	reads := []mem.Read{{Addr: 0, Buf: first}, {Addr: mem.PageSize, Buf: second}}
	if err := s.ReadPhys(context.Background(), reads); err != nil {
		t.Fatal(err)
	}
	if first[0] != 7 || w.saw != 7 {
		t.Errorf("the first read gave %d, the second saw it as %d", first[0], w.saw)
	}
}
