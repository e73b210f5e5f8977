package kernel

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/paging"
)

// View is a kernel as one snapshot shows it: what one answer is computed from. It
// belongs to one goroutine.
type View struct {
	*Kernel
	snap     *mem.Snapshot
	space    *paging.Space
	findings []Finding
	walk     int               // the one now running, -1 when none is
	during   map[int][]Finding // of the walks of this Each
}

// A Finding is something in a machine's memory that does not add up, or could not
// be followed to its end: what is wrong and with which object.
type Finding struct {
	Object string `json:"object"` // "task 412", "pid_namespace 0xffff…"
	What   string `json:"what"`
}

func (f Finding) String() string { return f.Object + ": " + f.What }

// maxFindings bounds what one answer reports; a hostile guest could fill memory.
const maxFindings = 1000

// View returns a fresh view of the kernel's memory. ctx bounds all reads made
// through it.
func (k *Kernel) View(ctx context.Context, opts mem.Options) *View {
	info := k.src.Info()
	opts.Static = opts.Static || !info.Live
	opts.Batch = opts.Batch || !info.Local
	v := &View{Kernel: k, walk: -1, snap: mem.NewSnapshot(ctx, k.src, opts)}
	v.space = paging.NewCached(v.snap, k.root, k.levels)
	v.space.Know(k.image.runs)
	v.snap.Want(k.tables)
	return v
}

// Snapshot returns the pages the view was made from so far.
func (v *View) Snapshot() *mem.Snapshot { return v.snap }

// Close gives the view's memory to the next one (see mem.Snapshot.Close).
func (v *View) Close() { v.snap.Close() }

// Space returns the kernel's address space.
func (v *View) Space() *paging.Space { return v.space }

// Process returns the address space whose top page table lies at pgd, a kernel
// address as in mm_struct.pgd.
func (v *View) Process(pgd mem.Virt) (*paging.Space, error) {
	root, err := v.space.Translate(pgd)
	if err != nil {
		return nil, err
	}
	return paging.New(v.snap, root, v.levels), nil
}

// Find notes something that does not add up. What a walk finds is forgotten when the
// walk is run again.
func (v *View) Find(object, format string, args ...any) {
	f := Finding{object, fmt.Sprintf(format, args...)}
	if v.walk < 0 {
		v.note(f)
		return
	}
	if v.during == nil {
		v.during = make(map[int][]Finding)
	}
	of := v.during[v.walk]
	if len(of) <= maxFindings && (of != nil || len(v.during) <= maxFindings) { // more are not reported anyway
		v.during[v.walk] = append(of, f)
	}
}

func (v *View) note(f Finding) {
	if len(v.findings) == maxFindings {
		f = Finding{"report", fmt.Sprintf("more than %d findings; the rest are left out", maxFindings)}
	}
	if len(v.findings) <= maxFindings {
		v.findings = append(v.findings, f)
	}
}

// Findings returns what did not add up so far.
func (v *View) Findings() []Finding { return v.findings }

// Each runs one walk per object, in rounds (see mem.Snapshot.Each). moved, which
// may be nil, is told the objects whose memory kept changing while it was read.
func (v *View) Each(n int, walk func(i int, w *Walk), moved func(i int)) error {
	return v.Grow(func() int { return n }, walk, moved)
}

// Grow is Each for walks that lead to more walks (see mem.Snapshot.Grow).
func (v *View) Grow(count func() int, walk func(i int, w *Walk), moved func(i int)) error {
	err := v.snap.Grow(count, func(i int) {
		delete(v.during, i)
		v.walk = i
		walk(i, &Walk{v: v, space: v.space})
		v.walk = -1
	}, moved)
	for _, i := range slices.Sorted(maps.Keys(v.during)) {
		for _, f := range v.during[i] {
			v.note(f)
		}
	}
	v.during = nil
	return err
}

// Do runs a single walk, in rounds, and returns its error.
func (v *View) Do(walk func(w *Walk)) error {
	var last error
	err := v.Each(1, func(_ int, w *Walk) {
		walk(w)
		last = w.err
	}, nil)
	if err != nil {
		return err
	}
	return last
}
