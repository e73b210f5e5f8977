package mem

import (
	"context"
	"errors"
	"fmt"
)

// A Read asks for len(Buf) bytes at Addr. The reader fills Buf from its start,
// sets N to the bytes that are valid and, when N < len(Buf), Err to why (a
// *Fault). Buf belongs to the caller; bytes behind N are unspecified.
type Read struct {
	Addr Phys
	Buf  []byte
	N    int
	Err  error
}

// Reader reads guest-physical memory, many ranges in one call: a local reader
// loops, a remote one answers all of them in one round trip. They are done in the
// order given: a Snapshot reads a link again behind what it leads to, to see that
// it did not move in between.
//
// The error is for the call as a whole (the machine is gone, ctx is done); then
// no Read may be used. A range that cannot be read is told in its own Err.
type Reader interface {
	ReadPhys(ctx context.Context, reads []Read) error
}

// Why a read can fail. Faults wrap them; test with errors.Is.
var (
	ErrNotRAM      = errors.New("outside the machine's RAM")
	ErrNotPresent  = errors.New("page not present")
	ErrNotRecorded = errors.New("page not recorded")
	ErrBadAddress  = errors.New("not a canonical address")
	ErrBadTable    = errors.New("malformed page table entry")
	ErrGone        = errors.New("the machine is gone")
)

// Layer says in which layer of the machine a read failed.
type Layer uint8

const (
	LayerPhysical Layer = iota // the machine's RAM
	LayerTable                 // a page table
	LayerVirtual               // an address behind page tables
)

func (l Layer) String() string {
	switch l {
	case LayerPhysical:
		return "physical memory"
	case LayerTable:
		return "page table"
	case LayerVirtual:
		return "virtual memory"
	}
	return fmt.Sprintf("layer %d", uint8(l))
}

// Fault is a read that could not be done: where, in which layer, and why.
type Fault struct {
	Layer Layer
	Addr  uint64
	Err   error
}

func (f *Fault) Error() string { return fmt.Sprintf("%v at %#x: %v", f.Layer, f.Addr, f.Err) }
func (f *Fault) Unwrap() error { return f.Err }

// Gather is one read of one range, for callers that need no more.
func Gather(ctx context.Context, r Reader, addr Phys, buf []byte) (int, error) {
	reads := []Read{{Addr: addr, Buf: buf}}
	if err := r.ReadPhys(ctx, reads); err != nil {
		return 0, err
	}
	return reads[0].N, reads[0].Err
}
