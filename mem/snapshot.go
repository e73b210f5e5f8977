package mem

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

// How many pages' contents a snapshot holds unless told otherwise: 16 MiB where a
// page that was dropped is cheap to read again, 48 MiB where it costs a round trip.
const (
	defaultCachePages = 4096
	batchCachePages   = 12288
)

// ErrPending is what a read inside a pass of Each fails with when its page has
// not been fetched yet. The walk is run again once it has; it never reaches a
// caller of Each.
var ErrPending = errors.New("page not fetched yet")

// ErrEndless is an answer that memory never lets come to an end: objects whose
// parts are each within bounds, but not all of them together.
var ErrEndless = errors.New("more than any machine needs")

// maxReads bounds the reads one answer is computed from: some hundred for each of a
// million tasks, and some seconds.
const maxReads = 1 << 28

// Options of a snapshot. The zero value is right for a live local machine.
type Options struct {
	CachePages int  // contents kept, in pages; 0 means 4096, or 12288 with Batch
	Batch      bool // fetch what all walks of a pass miss in one round, not each page when it is missed
	Keep       bool // keep every page's content: recording, or the machine is paused
	Static     bool // memory cannot change: nothing is read again to see whether it moved
}

// Snapshot is the set of pages one answer is computed from: a bounded page cache
// in front of a Reader that remembers each page it touched. A page read twice
// within a snapshot has the same content, or the snapshot knows that it moved.
//
// A Snapshot belongs to one goroutine.
type Snapshot struct {
	ctx  context.Context
	src  Reader
	opts Options

	pages    map[Phys]*page
	ring     []Phys // pages with content, in order of arrival: second-chance eviction
	hand     int
	spare    []*[PageSize]byte
	fresh    []page // not in pages yet
	last     Phys   // the page read last, since reads cluster
	lastPg   *page
	wanted   []Phys
	missed   bool // the walk now running met a page not fetched yet
	inPass   bool
	guards   []guard
	guarded  bool
	failed   error             // the source as a whole failed; every read fails from then on
	epoch    uint32            // counts the tries of walks that were done anew
	since    uint32            // pages read in an earlier epoch are read again
	base     uint32            // what since is between walks (see Renew)
	touched  map[Phys]struct{} // pages read, while that is being noted
	doubt    bool              // the walk now running came to what cannot be
	differed bool              // a page read again in this epoch is not what it was
	reads    int               // of words and pieces of pages
	stats    Stats
	one      [1]Read
}

// Stats says what an answer cost and how far it can be trusted.
type Stats struct {
	Rounds  int       // calls to the source
	Pages   int       // distinct pages touched
	Changed int       // pages that were dropped, read again and found different
	Moved   int       // walks whose memory kept moving while it was read
	Retried int       // walks done again because memory moved
	Begun   time.Time // first read
	Ended   time.Time // last read
}

// A page is asked for, then here or unreadable; a page that was here can be
// dropped, which keeps its hash, and asked for again.
type page struct {
	data *[PageSize]byte // nil unless here
	n    int             // valid bytes of data
	err  error           // why n < PageSize
	hash uint64          // of the content when it was dropped
	state
	epoch uint32 // when it was read
	used  bool   // touched since the eviction hand passed
	want  bool   // in the next round
}

type state uint8

const (
	absent state = iota
	here
	dropped
	unreadable
)

var hashSeed = maphash.MakeSeed()

// NewSnapshot returns an empty snapshot of src. ctx ends every read made through it.
func NewSnapshot(ctx context.Context, src Reader, opts Options) *Snapshot {
	switch {
	case opts.CachePages > 0:
	case opts.Batch:
		opts.CachePages = batchCachePages
	default:
		opts.CachePages = defaultCachePages
	}
	return &Snapshot{ctx: ctx, src: src, opts: opts, pages: make(map[Phys]*page, 512)}
}

// Err returns why the source failed as a whole, nil while it works.
func (s *Snapshot) Err() error { return s.failed }

// Context returns the context that bounds the snapshot.
func (s *Snapshot) Context() context.Context { return s.ctx }

// Stats returns what the snapshot cost so far.
func (s *Snapshot) Stats() Stats {
	st := s.stats
	st.Pages = len(s.pages)
	return st
}

// Read fills buf from guest-physical addr on. It returns the bytes read and, when
// they are fewer than len(buf), why.
func (s *Snapshot) Read(addr Phys, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		a, ok := addr.Add(uint64(n))
		if !ok {
			return n, &Fault{LayerPhysical, uint64(addr), ErrBadAddress}
		}
		pg, err := s.page(a.Page())
		if err != nil {
			return n, err
		}
		off := int(a - a.Page())
		if off >= pg.n {
			return n, &Fault{LayerPhysical, uint64(a), pg.reason()}
		}
		n += copy(buf[n:], pg.data[off:pg.n])
		if pg.n < PageSize && n < len(buf) {
			return n, &Fault{LayerPhysical, uint64(addr) + uint64(n), pg.reason()}
		}
	}
	return n, nil
}

// Uint64 reads the little-endian word at addr, which must not straddle a page.
// It is Read for the common case, without a copy.
func (s *Snapshot) Uint64(addr Phys) (uint64, error) {
	pg, err := s.page(addr.Page())
	if err != nil {
		return 0, err
	}
	off := int(addr - addr.Page())
	if off+8 > pg.n {
		return 0, &Fault{LayerPhysical, uint64(addr), pg.reason()}
	}
	return binary.LittleEndian.Uint64(pg.data[off:]), nil
}

// settled tells whether reading p now needs no round.
func (s *Snapshot) settled(p *page) bool {
	return p != nil && (p.state == here || p.state == unreadable) && p.epoch >= s.since
}

func (p *page) reason() error {
	if p.err != nil {
		return p.err
	}
	return ErrNotRAM
}

// page returns the page at frame (page-aligned) with its content.
func (s *Snapshot) page(frame Phys) (*page, error) {
	if s.reads++; s.reads > maxReads && s.failed == nil {
		s.failed = fmt.Errorf("%d reads did not bring the answer: %w", maxReads, ErrEndless)
	}
	if s.failed != nil {
		return nil, s.failed
	}
	if s.lastPg != nil && frame == s.last {
		return s.lastPg, nil
	}
	pg := s.pages[frame]
	if s.touched != nil {
		s.touched[frame] = struct{}{}
	}
	if !s.settled(pg) {
		if s.touched != nil {
			return nil, ErrPending
		}
		if s.inPass && s.opts.Batch {
			s.want(frame)
			s.missed = true
			return nil, ErrPending
		}
		if err := s.fetch([]Phys{frame}); err != nil {
			return nil, err
		}
		pg = s.pages[frame]
	}
	if pg.state == unreadable {
		return nil, &Fault{LayerPhysical, uint64(frame), pg.reason()}
	}
	pg.used = true
	s.last, s.lastPg = frame, pg
	return pg, nil
}

// newPage enters a page that was not asked for before.
func (s *Snapshot) newPage(frame Phys) *page {
	if len(s.fresh) == 0 {
		s.fresh = make([]page, 64)
	}
	pg := &s.fresh[0]
	s.fresh = s.fresh[1:]
	s.pages[frame] = pg
	return pg
}

// want notes that a page is needed in the next round.
func (s *Snapshot) want(frame Phys) {
	pg := s.pages[frame]
	if pg == nil {
		pg = s.newPage(frame)
	}
	if pg.want {
		return
	}
	// What one round brings must fit the cache, or pages would push out each other.
	if len(s.wanted) < s.opts.CachePages/2 {
		pg.want = true
		s.wanted = append(s.wanted, frame)
	}
}

// Batching tells whether a walk that misses a page is run again rather than made
// to wait.
func (s *Snapshot) Batching() bool { return s.inPass && s.opts.Batch }

// Renew has every page read again when it is needed next: for a second look at a
// machine that runs. With Options.Batch the pages that are here come in one round. It
// tells whether that can show anything new.
func (s *Snapshot) Renew() bool {
	if s.opts.Static || s.failed != nil {
		return false
	}
	s.epoch++
	s.base, s.since, s.lastPg = s.epoch, s.epoch, nil
	if s.opts.Batch {
		var frames []Phys
		for a, pg := range s.pages {
			if pg.state == here && len(frames) < s.opts.CachePages/2 {
				frames = append(frames, a)
			}
		}
		slices.Sort(frames)
		_ = s.fetch(frames) // the read that follows says what failed
	}
	return true
}

// Want asks for pages ahead of need, by any address in them. With Options.Batch
// they come with the next round, else in one round now.
func (s *Snapshot) Want(addrs []Phys) {
	var missing []Phys
	for _, a := range addrs {
		switch frame := a.Page(); {
		case s.settled(s.pages[frame]):
		case s.opts.Batch:
			s.want(frame)
		case !slices.Contains(missing, frame):
			missing = append(missing, frame)
		}
	}
	if len(missing) > 1 { // one alone comes when it is read
		slices.Sort(missing)
		// What one round brings must fit the cache. The read that follows says what failed.
		_ = s.fetch(missing[:min(len(missing), max(s.opts.CachePages/2, 1))])
	}
}

// takeWanted returns the pages wanted, which the caller fetches now.
func (s *Snapshot) takeWanted() []Phys {
	frames := s.wanted
	s.wanted = nil
	return frames
}

// fetch reads frames, each once in frames, in one call and caches them.
func (s *Snapshot) fetch(frames []Phys) error {
	if len(frames) == 0 {
		return nil
	}
	reads := s.one[:]
	if len(frames) > 1 {
		reads = make([]Read, len(frames))
	}
	for i, f := range frames {
		reads[i] = Read{Addr: f, Buf: s.buffer()[:]}
	}
	if err := s.readSource(reads); err != nil {
		return err
	}
	for i := range reads {
		s.settle(&reads[i])
	}
	return nil
}

// settle enters what was read of one page.
func (s *Snapshot) settle(r *Read) {
	pg := s.pages[r.Addr]
	if pg == nil {
		pg = s.newPage(r.Addr)
	}
	data, was := (*[PageSize]byte)(r.Buf), pg.state
	s.differed = s.differed || was == dropped || // it may
		was == here && (pg.n != r.N || *pg.data != *data) || was == unreadable && r.N > 0
	pg.want, pg.used, pg.epoch = false, true, s.epoch
	pg.n, pg.err = r.N, nil
	if r.N < PageSize {
		pg.err = cause(r.Err)
	}
	if was == here { // fetched anew because it moved; its place in the ring stays
		copy(pg.data[:], data[:r.N])
		s.spare = append(s.spare, data)
		return
	}
	if r.N == 0 {
		s.spare = append(s.spare, data)
		pg.state = unreadable
		return
	}
	pg.data, pg.state = data, here
	if was == dropped && pg.sum() != pg.hash {
		s.stats.Changed++
	}
	s.keep(r.Addr)
}

// cause takes the fault apart: the snapshot knows address and layer itself.
func cause(err error) error {
	var f *Fault
	if errors.As(err, &f) {
		return f.Err
	}
	return err
}

// readSource is the one place that calls the source.
func (s *Snapshot) readSource(reads []Read) error {
	if s.failed != nil {
		return s.failed
	}
	if err := s.ctx.Err(); err != nil {
		s.failed = err
		return err
	}
	now := time.Now()
	if s.stats.Begun.IsZero() {
		s.stats.Begun = now
	}
	s.stats.Rounds++
	if err := s.src.ReadPhys(s.ctx, reads); err != nil {
		s.failed = err
		return err
	}
	s.stats.Ended = now
	return nil
}

// keep enters a page with content into the eviction ring, in place of the page
// that was not used for longest when the cache is full.
func (s *Snapshot) keep(frame Phys) {
	if s.opts.Keep || len(s.ring) < s.opts.CachePages {
		s.ring = append(s.ring, frame)
		return
	}
	for {
		s.hand = (s.hand + 1) % len(s.ring)
		pg := s.pages[s.ring[s.hand]]
		if pg.used {
			pg.used = false
			continue
		}
		s.drop(pg)
		s.ring[s.hand] = frame
		return
	}
}

// drop forgets a page's content but not what it was.
func (s *Snapshot) drop(pg *page) {
	pg.hash, pg.state = pg.sum(), dropped
	s.spare = append(s.spare, pg.data)
	pg.data = nil
	if s.lastPg == pg {
		s.lastPg = nil
	}
}

// sum hashes the content of a page that is here.
func (p *page) sum() uint64 { return maphash.Bytes(hashSeed, p.data[:p.n]) }

// buffer returns room for a page, with any content.
func (s *Snapshot) buffer() *[PageSize]byte {
	if len(s.spare) == 0 {
		s.spare = pool.take(s.spare)
	}
	n := len(s.spare) - 1
	b := s.spare[n]
	s.spare = s.spare[:n]
	return b
}

// Close gives the snapshot's memory to the next one. It must not be used any more.
// A snapshot that is not closed costs its successors allocations, nothing else.
func (s *Snapshot) Close() {
	for _, pg := range s.pages {
		if pg.data != nil {
			s.spare = append(s.spare, pg.data)
		}
	}
	pool.give(s.spare)
	s.pages, s.ring, s.spare, s.lastPg = nil, nil, nil, nil
	s.failed = errors.New("the snapshot is closed")
}

// pool keeps page buffers between snapshots: a program that watches a machine
// takes many.
var pool pagePool

type pagePool struct {
	mu   sync.Mutex
	free []*[PageSize]byte
}

const (
	poolPages  = 2048 // kept at most: 8 MiB
	poolHanded = 32   // handed out at once
)

func (p *pagePool) take(to []*[PageSize]byte) []*[PageSize]byte {
	p.mu.Lock()
	if n := min(len(p.free), poolHanded); n > 0 {
		from := len(p.free) - n
		to = append(to, p.free[from:]...)
		clear(p.free[from:])
		p.free = p.free[:from]
		p.mu.Unlock()
		return to
	}
	p.mu.Unlock()
	fresh := new([16][PageSize]byte)
	for i := range fresh {
		to = append(to, &fresh[i])
	}
	return to
}

func (p *pagePool) give(bufs []*[PageSize]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, bufs[:min(len(bufs), poolPages-len(p.free))]...)
}

// PageRef is a page a snapshot touched.
type PageRef struct {
	Addr Phys
	Data []byte // its valid bytes, nil when its content was dropped or it could not be read; owned by the snapshot until Close
	Hash uint64 // of the content, comparable within one process only; 0 when it could not be read
	Err  error  // why it could not be read in full
}

// Pages returns every page touched, ascending.
func (s *Snapshot) Pages() []PageRef {
	refs := make([]PageRef, 0, len(s.pages))
	for a, pg := range s.pages {
		if pg.state == absent {
			continue // wanted, never fetched
		}
		r := PageRef{Addr: a, Hash: pg.hash, Err: pg.err}
		if pg.state == here {
			r.Data, r.Hash = pg.data[:pg.n], pg.sum()
		}
		refs = append(refs, r)
	}
	slices.SortFunc(refs, func(a, b PageRef) int {
		if a.Addr < b.Addr {
			return -1
		}
		return 1
	})
	return refs
}
