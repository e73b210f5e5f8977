package linux

import (
	"fmt"
	"slices"
	"strings"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Cgroup is a control group.
type Cgroup struct {
	Hierarchy   int      `json:"hierarchy"`   // 0 is cgroup v2, others as in /proc/cgroups
	Name        *string  `json:"name"`        // of a named v1 hierarchy
	Path        string   `json:"path"`        // from the hierarchy's root
	ID          uint64   `json:"id"`          // inode of its directory
	Controllers []string `json:"controllers"` // available in it
	Processes   int      `json:"processes"`   // in it, those in groups below left out
	Populated   *bool    `json:"populated"`   // a process is in it or below; nil in v1
	Frozen      *bool    `json:"frozen"`      // all processes in it and below are; nil in v1
	Moved       bool     `json:"moved"`       // memory kept changing while this was read
	Errors      []string `json:"errors"`      // parts that could not be read

	Addr mem.Virt `json:"-"` // of the struct cgroup
	PIDs []int    `json:"-"` // of the processes in it, ascending
}

// cgroupLayout is include/linux/cgroup-defs.h and kernel/cgroup/cgroup-internal.h.
type cgroupLayout struct {
	RootList  btf.Field `btf:"cgroup_root.root_list"`
	RootMask  btf.Field `btf:"cgroup_root.subsys_mask"`
	Hierarchy btf.Field `btf:"cgroup_root.hierarchy_id"`
	RootName  btf.Field `btf:"cgroup_root.name"`
	RootGroup btf.Field `btf:"cgroup_root.cgrp"`

	Self     btf.Field `btf:"cgroup.self"`
	Flags    btf.Field `btf:"cgroup.flags"`
	Node     btf.Field `btf:"cgroup.kn"`
	Subtree  btf.Field `btf:"cgroup.subtree_control"`
	Root     btf.Field `btf:"cgroup.root"`
	Domain   btf.Field `btf:"cgroup.dom_cgrp"`
	CsetsPop btf.Field `btf:"cgroup.nr_populated_csets cgroup.self.nr_populated_csets"` // of self since 7.2
	KidsPop  btf.Field `btf:"cgroup.nr_populated_domain_children cgroup.self.nr_populated_children"`
	ThrPop   btf.Field `btf:"cgroup.nr_populated_threaded_children ?"`

	Sibling  btf.Field `btf:"cgroup_subsys_state.sibling"`
	Children btf.Field `btf:"cgroup_subsys_state.children"`
	CSSFlags btf.Field `btf:"cgroup_subsys_state.flags"`
	CSSGroup btf.Field `btf:"cgroup_subsys_state.cgroup"`

	ID       btf.Field `btf:"kernfs_node.id"`
	NodeName btf.Field `btf:"kernfs_node.name"`

	SetOf    btf.Field `btf:"task_struct.cgroups"`
	SetLinks btf.Field `btf:"css_set.cgrp_links"`
	Subsys   btf.Field `btf:"css_set.subsys"`
	LinkSet  btf.Field `btf:"cgrp_cset_link.cgrp_link"`
	LinkTo   btf.Field `btf:"cgrp_cset_link.cgrp"`

	SubsysName   btf.Field `btf:"cgroup_subsys.name"`
	SubsysLegacy btf.Field `btf:"cgroup_subsys.legacy_name"`
}

// Flags of a cgroup and of its state, which have not changed since 5.2.
const (
	cgroupFrozen = 1 << 3 // CGRP_FROZEN
	cssOnline    = 1 << 1 // CSS_ONLINE: not removed
)

// Bounds: a machine has one hierarchy for each controller at most, besides named ones.
const (
	maxHierarchies = 64
	maxCgroups     = 1 << 17
	maxCgroupDepth = 1 << 10
)

// Cgroups lists the control groups of all hierarchies, by hierarchy and path.
// Groups that were removed and only wait for their last user are left out. The
// processes of a group are those cgroup.procs has: zombies are in none.
func Cgroups(v *kernel.View) ([]Cgroup, error) {
	return confirmed(v, func() ([]Cgroup, error) { return listCgroups(v) })
}

// listCgroups is Cgroups for one look.
func listCgroups(v *kernel.View) ([]Cgroup, error) {
	l, err := kernel.Layout[cgroupLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	tasks, err := Tasks(v, TaskOptions{Brief: true})
	if err != nil {
		return nil, err
	}
	r := &cgroupReader{v: v, l: l, pids: map[mem.Virt][]int{}, seen: map[mem.Virt]bool{}, kids: budget{maxCgroups}}
	// The groups processes are in are met first, all at once; the lists that join
	// groups to their parents then lead through memory that is here already.
	if err := r.ofTasks(tasks); err != nil {
		return nil, err
	}
	level, err := r.roots()
	if err != nil {
		return nil, err
	}
	for depth := 0; len(level) > 0; depth++ {
		if depth > maxCgroupDepth {
			return nil, fmt.Errorf("control groups: depth %d: %w", depth, kernel.ErrTooLong)
		}
		if level, err = r.descend(level); err != nil {
			return nil, err
		}
	}
	return r.finish(), nil
}

type cgroupReader struct {
	v    *kernel.View
	l    *cgroupLayout
	pids map[mem.Virt][]int // by group
	seen map[mem.Virt]bool

	controllers []controller
	hidden      uint64 // controllers that v2's root does not show
	threaded    uint64 // controllers that work in threaded groups
	rows        []*cgroupRow
	kids        budget // children met
}

// controller is a struct cgroup_subsys.
type controller struct{ name, legacy string }

// cgroupRow is a group while it is being read.
type cgroupRow struct {
	Cgroup
	v2       bool
	control  uint64 // controllers its parent lets it have
	subtree  uint64 // controllers it lets its children have
	dead     bool
	children []mem.Virt
	name     string
	parent   *cgroupRow
	held     uint64
}

// ofTasks notes which groups the processes are in.
func (r *cgroupReader) ofTasks(tasks []Task) error {
	sets := make([]mem.Virt, len(tasks))
	errs := make([]error, len(tasks))
	err := r.v.Each(len(tasks), func(i int, w *kernel.Walk) {
		sets[i] = w.Follow(tasks[i].Addr, r.l.SetOf)
		errs[i] = w.Err()
	}, nil)
	if err != nil {
		return err
	}
	of := map[mem.Virt][]int{} // tasks by css_set
	var order []mem.Virt
	for i := range tasks {
		t := &tasks[i]
		if errs[i] != nil {
			r.v.Find(taskName(t.TID), "control groups: %v", errs[i])
			continue
		}
		if (t.State == "Z" || t.State == "X") && t.Threads != nil && *t.Threads <= 1 {
			continue
		}
		if of[sets[i]] == nil {
			order = append(order, sets[i])
		}
		of[sets[i]] = append(of[sets[i]], t.PID)
	}
	groups := make([][]mem.Virt, len(order))
	errs = make([]error, len(order))
	err = r.v.Each(len(order), func(i int, w *kernel.Walk) {
		groups[i] = r.ofSet(w, order[i])
		errs[i] = w.Err()
	}, nil)
	if err != nil {
		return err
	}
	for i, set := range order {
		if errs[i] != nil {
			r.v.Find(fmt.Sprintf("css_set %v", set), "its %d processes' control groups: %v", len(of[set]), errs[i])
		}
		for _, g := range groups[i] {
			r.pids[g] = append(r.pids[g], of[set]...)
		}
	}
	return nil
}

// ofSet returns the groups a css_set stands for, one in each hierarchy.
func (r *cgroupReader) ofSet(w *kernel.Walk, set mem.Virt) (groups []mem.Virt) {
	list(w, w.At(set, r.l.SetLinks), func(node mem.Virt) bool {
		g := w.Ptr(node-mem.Virt(r.l.LinkSet.Offset), r.l.LinkTo)
		w.U32(w.At(g, r.l.Flags)) // meet it
		groups = append(groups, g)
		if len(groups) > maxHierarchies {
			w.Failf("css_set %v: %w", set, kernel.ErrTooLong)
		}
		return w.OK()
	})
	return groups
}

// roots returns the top groups of the mounted hierarchies.
func (r *cgroupReader) roots() (rows []*cgroupRow, err error) {
	head, err := r.v.Symbol("cgroup_roots")
	if err != nil {
		return nil, err
	}
	dfl, err := r.v.Symbol("cgrp_dfl_root")
	if err != nil {
		return nil, err
	}
	l := r.l
	err = r.v.Do(func(w *kernel.Walk) {
		rows = nil
		err := w.Try(func() { r.readControllers(w) })
		list(w, head, func(node mem.Virt) bool {
			root := node - mem.Virt(l.RootList.Offset)
			row := &cgroupRow{v2: root == dfl}
			row.Addr = root + mem.Virt(l.RootGroup.Offset)
			row.Hierarchy, row.control = int(w.Int(root, l.Hierarchy)), w.Uint(root, l.RootMask)
			if row.v2 {
				row.control &^= r.hidden
			} else if name := w.Text(root, l.RootName); name != "" {
				row.Name = &name
			}
			if row.v2 && !r.visible(w) {
				return true
			}
			if rows = append(rows, row); len(rows) > maxHierarchies {
				w.Failf("hierarchies of control groups: %w", kernel.ErrTooLong)
			}
			return w.OK()
		})
		if err != nil {
			w.Fail(err)
		}
	})
	return rows, err
}

// visible tells whether the v2 hierarchy was ever mounted (cgrp_dfl_visible).
func (r *cgroupReader) visible(w *kernel.Walk) bool {
	a, err := r.v.Symbol("cgrp_dfl_visible")
	if err != nil {
		w.Fail(err)
		return false
	}
	var b [1]byte
	w.Read(a, b[:])
	return b[0] != 0
}

// readControllers reads the kernel's controllers and what is told apart of them.
func (r *cgroupReader) readControllers(w *kernel.Walk) {
	table, err := r.v.Symbol("cgroup_subsys")
	if err != nil {
		w.Fail(err)
		return
	}
	mask := func(name string) uint64 {
		a, err := r.v.Symbol(name)
		if err != nil { // a kernel without any such controller need not have it
			return 0
		}
		return w.Uint(a, btf.Field{Name: name, Size: r.l.Subtree.Size, Known: true})
	}
	r.hidden = mask("cgrp_dfl_inhibit_ss_mask") | mask("cgrp_dfl_implicit_ss_mask")
	r.threaded = mask("cgrp_dfl_threaded_ss_mask")
	r.controllers = make([]controller, min(r.l.Subsys.Len(), 64))
	var first error
	for i := range r.controllers {
		err := w.Try(func() {
			ss := w.Pointer(table + mem.Virt(i*8))
			r.controllers[i] = controller{
				w.String(w.Ptr(ss, r.l.SubsysName), 64), w.String(w.Ptr(ss, r.l.SubsysLegacy), 64)}
		})
		first = firstError(first, err)
	}
	if first != nil {
		w.Fail(first)
	}
}

// descend reads a level of groups and returns the next.
func (r *cgroupReader) descend(level []*cgroupRow) (next []*cgroupRow, err error) {
	err = r.v.Each(len(level), func(i int, w *kernel.Walk) { r.read(w, level[i]) },
		func(i int) { level[i].Moved = true })
	if err != nil {
		return nil, err
	}
	for _, row := range level {
		if row.dead {
			continue
		}
		r.rows = append(r.rows, row)
		for _, a := range row.children {
			if r.seen[a] {
				row.Errors = append(row.Errors, fmt.Sprintf("child %v: %v", a, kernel.ErrLoop))
				continue
			}
			if r.seen[a] = true; len(r.seen) > maxCgroups {
				return nil, fmt.Errorf("control groups: %w", kernel.ErrTooLong)
			}
			child := &cgroupRow{v2: row.v2, control: row.control, parent: row}
			if row.v2 {
				child.control = row.subtree
			}
			child.Addr, child.Hierarchy, child.Name = a, row.Hierarchy, row.Name
			next = append(next, child)
		}
	}
	return next, nil
}

// read reads one group.
func (r *cgroupReader) read(w *kernel.Walk, row *cgroupRow) {
	l, g := r.l, row.Addr
	row.Errors, row.children, row.Populated, row.Frozen = []string{}, nil, nil, nil
	r.kids.back(&row.held)
	try := func(part string, f func()) {
		if s := message(part, w.Try(f)); s != "" {
			row.Errors = append(row.Errors, s)
		}
	}
	self := w.At(g, l.Self)
	try("cgroup", func() {
		w.Guard(self, l.CSSFlags)
		row.dead = w.Uint(self, l.CSSFlags)&cssOnline == 0 && row.parent != nil
		row.subtree = w.Uint(g, l.Subtree)
		control := row.control
		if row.v2 && row.parent != nil && w.Ptr(g, l.Domain) != g {
			control &= r.threaded
		}
		row.Controllers = r.names(control, row.v2)
		if row.v2 {
			frozen := w.Uint(g, l.Flags)&cgroupFrozen != 0
			n := w.Uint(g, l.CsetsPop) + w.Uint(g, l.KidsPop)
			if l.ThrPop.Known {
				n += w.Uint(g, l.ThrPop)
			}
			if populated := n != 0; w.OK() {
				row.Frozen, row.Populated = &frozen, &populated
			}
		}
	})
	try("name", func() {
		kn := w.Follow(g, l.Node)
		row.ID = w.Uint(kn, l.ID)
		if row.parent != nil {
			row.name = w.String(w.Ptr(kn, l.NodeName), 255)
		}
	})
	try("children", func() {
		w.Guard(self, l.Children)
		list(w, w.At(self, l.Children), func(node mem.Virt) bool {
			row.children = append(row.children, w.Ptr(node-mem.Virt(l.Sibling.Offset), l.CSSGroup))
			return r.kids.take(w, &row.held, 1) && w.OK()
		})
	})
}

// names returns the controllers of a mask, in the kernel's order.
func (r *cgroupReader) names(mask uint64, v2 bool) []string {
	names := []string{}
	for i, c := range r.controllers {
		if mask>>i&1 == 0 {
			continue
		}
		if v2 {
			names = append(names, c.name)
		} else {
			names = append(names, c.legacy)
		}
	}
	return names
}

// finish names the groups by their paths and sorts them.
func (r *cgroupReader) finish() []Cgroup {
	out := make([]Cgroup, 0, len(r.rows))
	for _, row := range r.rows { // parents come before their children
		switch {
		case row.parent == nil:
			row.Path = "/"
		case row.parent.parent == nil:
			row.Path = "/" + row.name
		default:
			row.Path = row.parent.Path + "/" + row.name
		}
		row.PIDs = r.pids[row.Addr]
		slices.Sort(row.PIDs)
		row.Processes = len(row.PIDs)
		out = append(out, row.Cgroup)
	}
	slices.SortFunc(out, func(a, b Cgroup) int {
		if a.Hierarchy != b.Hierarchy {
			return a.Hierarchy - b.Hierarchy
		}
		return strings.Compare(a.Path, b.Path)
	})
	return out
}
