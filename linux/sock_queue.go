package linux

import (
	"fmt"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Bounds of one answer about the network: the objects it is made of, sockets among
// them, and entries of descriptor tables. A hostile machine can let any number of
// tables lead to the same memory.
const (
	maxWork    = 1 << 20
	maxSockets = 1 << 18
	maxHeld    = 1 << 21
)

// work is one object, or a chain of them, to be read. It may be run several times,
// each time from its start: what it found is that of the last run.
type work interface {
	run(w *kernel.Walk)
}

// workKey names what a work reads, so that nothing is read twice.
type workKey struct {
	kind workKind
	addr mem.Virt
}

type workKind uint8

const (
	workPIDs workKind = iota
	workPID
	workFiles
	workFile
	workNet
	workNetList
	workNetlink
	workTable
	workChain
	workDev
	workSock // and above: workSock + sockKind
)

// workQueue runs works that lead to others, all in the rounds of the longest way
// from one to the next.
type workQueue struct {
	v     *kernel.View
	all   []work
	index map[workKey]int
	moved map[int]bool
	ran   int // works that have run
	full  bool
	socks int
	held  int
}

func newWorkQueue(v *kernel.View) *workQueue {
	return &workQueue{v: v, index: make(map[workKey]int), moved: make(map[int]bool)}
}

// enqueue returns the work of type T that reads what kind and addr name, and
// makes it when there is none yet. The zero T is returned when the queue is full.
func enqueue[T work](q *workQueue, kind workKind, addr mem.Virt, make func() T) (t T) {
	key := workKey{kind, addr}
	if i, ok := q.index[key]; ok {
		return q.all[i].(T)
	}
	if len(q.all) == maxWork {
		q.full = true
		return t
	}
	t = make()
	q.index[key] = len(q.all)
	q.all = append(q.all, t)
	return t
}

// run runs all works that have not run yet and those they lead to.
func (q *workQueue) run() error {
	from := q.ran
	err := q.v.Grow(func() int { return len(q.all) - from },
		func(i int, w *kernel.Walk) { q.all[from+i].run(w) },
		func(i int) { q.moved[from+i] = true })
	q.ran = len(q.all)
	if err == nil && q.full {
		err = fmt.Errorf("more than %d sockets, or %d objects: %w", maxSockets, maxWork, kernel.ErrTooLong)
	}
	return err
}

// hasMoved tells whether memory kept changing under a work.
func (q *workQueue) hasMoved(kind workKind, addr mem.Virt) bool {
	i, ok := q.index[workKey{kind, addr}]
	return ok && q.moved[i]
}
