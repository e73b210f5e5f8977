package linux

import (
	"errors"
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// area is a mapping while it is being read.
type area struct {
	Mapping
	file mem.Virt // of the struct file, 0 for anonymous memory
}

// addressSpace is the areas of one mm_struct, which processes can share.
type addressSpace struct {
	mm         mem.Virt
	areas      []area
	brk        [2]uint64 // start_brk, brk
	startStack uint64
	gate       bool // shows the vsyscall page behind its areas
	err        error
	held       uint64 // of the budget
	moved      bool
}

// addressSpaces finds the areas of tasks, each mm_struct once, in the order of tasks.
func (r *mapReader) addressSpaces(tasks []Task) (byMM map[mem.Virt]*addressSpace, all []*addressSpace, err error) {
	byMM = make(map[mem.Virt]*addressSpace)
	for _, t := range tasks {
		if t.MM != 0 && byMM[t.MM] == nil {
			byMM[t.MM] = &addressSpace{mm: t.MM}
			all = append(all, byMM[t.MM])
		}
	}
	var gate *area
	var gateErr error
	left := budget{maxMappings}
	err = r.v.Each(len(all)+1, func(i int, w *kernel.Walk) {
		if i == len(all) {
			gate, gateErr = r.gateArea(w), w.Err()
			// All paths are told from there, and each file's walk reads it again.
			_ = w.Probe(func() { firstRoot(w, r.ns, r.task, r.path) })
			return
		}
		left.back(&all[i].held)
		*all[i] = r.addressSpace(w, all[i].mm, &left)
	}, func(i int) {
		if i < len(all) {
			all[i].moved = true
		}
	})
	if err == nil && gateErr != nil {
		err = fmt.Errorf("vsyscall page: %w", gateErr)
	}
	for _, s := range all {
		if gate != nil && s.gate && s.err == nil {
			s.areas = append(s.areas, *gate)
		}
	}
	return byMM, all, err
}

// addressSpace finds the areas of the mm_struct at mm.
func (r *mapReader) addressSpace(w *kernel.Walk, mm mem.Virt, left *budget) addressSpace {
	l := r.l
	s := addressSpace{mm: mm}
	w.Guard(mm, l.Count)
	w.Guard(mm, l.TotalVM)
	w.Guard(mm, l.LockSeq)
	s.brk = [2]uint64{w.Uint(mm, l.StartBrk), w.Uint(mm, l.Brk)}
	s.startStack = w.Uint(mm, l.StartStack)
	s.gate = r.hasGate(w, mm)
	if r.maple != nil {
		s.areas = r.mapleAreas(w, mm)
	} else {
		s.areas = r.treeAreas(w, mm)
	}
	if w.OK() {
		left.take(w, &s.held, uint64(len(s.areas)))
	}
	if s.err = w.Err(); s.err != nil {
		s.areas = nil
	}
	r.ahead(w, s.areas)
	return s
}

// ahead reads what areas point to, so that it comes while others are still being
// found. What it misses and describe needs fails there.
func (r *mapReader) ahead(w *kernel.Walk, areas []area) {
	if !w.View().Snapshot().Batching() {
		return
	}
	var last mem.Virt
	for i := range areas {
		_ = w.Probe(func() {
			file := w.Ptr(areas[i].Addr, r.l.File)
			switch {
			case !w.OK():
			case file == 0:
				r.givenName(w, &areas[i])
			case file != last:
				last = file
				fileAhead(w, r.file, r.path, file)
			}
		})
	}
}

// mapleAreas returns the areas in a maple tree.
func (r *mapReader) mapleAreas(w *kernel.Walk, mm mem.Virt) (areas []area) {
	for _, e := range mapleEntries(w, r.maple, w.At(mm, r.l.Maple)) {
		a := area{}
		a.Addr, a.First, a.Limit = e.Ptr, mem.Virt(e.First), mem.Virt(e.Last+1)
		areas = append(areas, a)
	}
	return areas
}

// treeAreas returns the areas in a red-black tree, and holds them against the list
// of the same areas, which is what the kernel prints.
func (r *mapReader) treeAreas(w *kernel.Walk, mm mem.Virt) []area {
	t := rbWalk{w: w, l: r.rb}
	err := w.Try(func() { t.tree(w.At(mm, r.l.Tree)) })
	if errors.Is(err, mem.ErrPending) {
		r.neighboursAhead(w, t.out)
	}
	w.Fail(err)
	next := w.Ptr(mm, r.l.List)
	var areas []area
	for _, node := range t.out {
		a := area{}
		a.Addr = node - mem.Virt(r.l.Node.Offset)
		a.First, a.Limit = w.Ptr(a.Addr, r.l.Start), w.Ptr(a.Addr, r.l.End)
		if !w.OK() {
			return nil
		}
		if next != a.Addr {
			w.Failf("mm_struct %v: the list of areas goes to %v, the tree to %v", mm, next, a.Addr)
			return nil
		}
		next = w.Ptr(a.Addr, r.l.Next)
		if n := len(areas); a.First >= a.Limit || n > 0 && areas[n-1].Limit > a.First {
			w.Failf("area %v from %v to %v is out of order", a.Addr, a.First, a.Limit)
			return nil
		}
		areas = append(areas, a)
	}
	if w.OK() && next != 0 {
		w.Failf("mm_struct %v: the list of areas goes on to %v, the tree has ended", mm, next)
	}
	return areas
}

// neighboursAhead follows the list of areas both ways from each node of the tree
// that is here already: what lies deep in the tree comes in fewer rounds.
func (r *mapReader) neighboursAhead(w *kernel.Walk, nodes []mem.Virt) {
	seen := make(map[mem.Virt]struct{}, 2*len(nodes))
	for _, link := range []btf.Field{r.l.Next, r.l.Prev} {
		clear(seen)
		for _, n := range nodes {
			vma := n - mem.Virt(r.l.Node.Offset)
			_ = w.Probe(func() {
				for w.OK() && vma != 0 && len(seen) < maxRBNodes {
					if _, again := seen[vma]; again {
						return
					}
					seen[vma] = struct{}{}
					vma = w.Ptr(vma, link)
				}
			})
		}
	}
}

// describe fills in what the areas hold besides where they lie.
func (r *mapReader) describe(spaces []*addressSpace) error {
	type place struct {
		s *addressSpace
		a *area
	}
	var all []place
	for _, s := range spaces {
		for i := range s.areas {
			all = append(all, place{s, &s.areas[i]})
		}
	}
	err := r.v.Each(len(all), func(i int, w *kernel.Walk) { *all[i].a = r.area(w, all[i].s, all[i].a) },
		func(i int) { all[i].a.Moved = true })
	if err != nil {
		return err
	}
	index := make(map[mem.Virt]int)
	var files []mappedFile
	for _, p := range all {
		if _, ok := index[p.a.file]; !ok && p.a.file != 0 {
			index[p.a.file] = len(files)
			files = append(files, mappedFile{addr: p.a.file})
		}
	}
	err = r.v.Each(len(files), func(i int, w *kernel.Walk) { files[i] = r.mappedFile(w, files[i].addr) },
		func(i int) { files[i].moved = true })
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.a.file != 0 {
			p.a.takeFile(&files[index[p.a.file]])
		}
	}
	return nil
}
