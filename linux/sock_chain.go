package linux

import (
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Bounds of hash tables: buckets of one, and bytes of it read at a time.
const (
	maxBuckets  = 1 << 22
	bucketChunk = 1 << 18
)

// link is a pointer that is followed at the address itself.
var link = btf.Field{Name: "link", Size: 8, Known: true}

// sockTable is a hash table of sockets, or a single list of them.
type sockTable struct {
	r    *sockReader
	kind sockKind
	addr mem.Virt
	// heads returns the addresses of the buckets' heads that are not empty.
	heads  func(w *kernel.Walk) []mem.Virt
	node   int64    // from a socket's start to the link
	mask   mem.Virt // bits of a head that are no address: a lock
	chains []*sockChain
	next   *sockTable // that its entries are moving to
	err    error
}

func (t *sockTable) run(w *kernel.Walk) {
	t.chains = t.chains[:0]
	for _, head := range t.heads(w) {
		c := enqueue(t.r.q, workChain, head, func() *sockChain { return &sockChain{t: t, head: head} })
		if c != nil {
			t.chains = append(t.chains, c)
		}
	}
	t.err = w.Err()
}

// sockChain is what one head leads to.
type sockChain struct {
	t     *sockTable
	head  mem.Virt
	socks []*sockWork
	err   error
}

func (c *sockChain) run(w *kernel.Walk) {
	c.socks = c.socks[:0]
	seen := make(map[mem.Virt]struct{})
	w.Guard(c.head, link)
	p := w.Pointer(c.head) &^ c.t.mask
	for w.OK() && p != 0 && p&1 == 0 { // a marker ends chains of list_nulls.h
		if _, again := seen[p]; again {
			w.Failf("entry %v: %w", p, kernel.ErrLoop)
			break
		}
		seen[p] = struct{}{}
		s := c.t.r.sock(c.t.kind, p-mem.Virt(c.t.node))
		if s == nil {
			w.Fail(kernel.ErrTooLong)
			break
		}
		c.socks = append(c.socks, s)
		w.Guard(p, link)
		p = w.Pointer(p)
	}
	c.err = w.Err()
}

// buckets returns the addresses of the heads that are not empty among n buckets
// of stride bytes from base on, whose heads lie off bytes into them.
func buckets(w *kernel.Walk, base mem.Virt, n, stride, off uint64) (heads []mem.Virt) {
	if n > maxBuckets || stride < 8 || off > stride-8 {
		w.Failf("hash table at %v: %d buckets of %d bytes: %w", base, n, stride, kernel.ErrTooLong)
		return nil
	}
	var missed error
	each := bucketChunk / stride
	for first := uint64(0); first < n && len(heads) <= maxWork; first += each {
		count := min(each, n-first)
		at := base + mem.Virt(first*stride)
		// All of it, before giving up: then its pages come in one round.
		err := w.Try(func() {
			b := w.Bytes(at, count*stride)
			for i := range uint64(len(b)) / stride {
				if p := word(b, int(i*stride+off)); p&^1 != 0 && (p&1 == 0 || p>>63 != 0) {
					heads = append(heads, at+mem.Virt(i*stride+off))
				}
			}
		})
		if missed == nil {
			missed = err
		}
	}
	if missed == nil && len(heads) > maxWork {
		missed = fmt.Errorf("hash table at %v: more than %d buckets in use: %w", base, maxWork, kernel.ErrTooLong)
	}
	if missed != nil {
		w.Fail(missed)
	}
	return heads
}
