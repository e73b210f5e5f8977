package linux

import (
	"fmt"
	"slices"
	"strings"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Module is a loaded kernel module, as /proc/modules shows it.
type Module struct {
	Name     string   `json:"name"`
	Size     uint64   `json:"size"`     // bytes, of all its memory
	Refcount *int     `json:"refcount"` // nil in kernels that cannot unload modules
	UsedBy   []string `json:"used_by"`  // names, and "[permanent]" for one that cannot be unloaded
	State    string   `json:"state"`    // Live, Loading, Unloading
	Address  string   `json:"address"`  // of its text, "0xffffffffc0616000"
	Taints   string   `json:"taints"`   // "(OE)", empty when it does not taint the kernel
	Moved    bool     `json:"moved"`    // memory kept changing while this was read
	Errors   []string `json:"errors"`   // parts that could not be read

	Addr mem.Virt `json:"-"` // of the struct module
	Base mem.Virt `json:"-"` // of its text
}

// moduleLayout is include/linux/module.h.
type moduleLayout struct {
	State    btf.Field `btf:"module.state"`
	List     btf.Field `btf:"module.list"`
	Name     btf.Field `btf:"module.name"`
	Kobj     btf.Field `btf:"module.mkobj.kobj"`
	KobjMod  btf.Field `btf:"module_kobject.mod"`
	KobjKobj btf.Field `btf:"module_kobject.kobj"`
	Init     btf.Field `btf:"module.init"`
	Exit     btf.Field `btf:"module.exit ?"` // these four with CONFIG_MODULE_UNLOAD
	Refcnt   btf.Field `btf:"module.refcnt.counter ?"`
	Sources  btf.Field `btf:"module.source_list ?"`
	Source   btf.Field `btf:"module_use.source ?"`
	Link     btf.Field `btf:"module_use.source_list ?"`
	Taints   btf.Field `btf:"module.taints"`

	Mem      btf.Field `btf:"module.mem ?"` // an array by kind since 6.4
	MemBase  btf.Field `btf:"module_memory.base ?"`
	MemSize  btf.Field `btf:"module_memory.size ?"`
	CoreBase btf.Field `btf:"module.core_layout.base ?"` // before
	CoreSize btf.Field `btf:"module.core_layout.size ?"`
	InitSize btf.Field `btf:"module.init_layout.size ?"`
}

// States of a module, enum module_state.
const (
	moduleLive     = 0
	moduleComing   = 1
	moduleGoing    = 2
	moduleUnformed = 3 // not shown: still being put together
)

// moduleRefBase is what the reference count of an unused module is (MODULE_REF_BASE).
const moduleRefBase = 1

// maxModules bounds the modules of a kernel: their memory is 1 GiB, and each has
// more than a page of it.
const maxModules = 1 << 13

// maxModuleUses bounds the uses of one module by another, of all modules together.
const maxModuleUses = 1 << 16

// Modules lists the kernel's modules in the order of /proc/modules, which is that
// of the kernel's list, newest first. What the list lacks but the tree the kernel
// finds modules by address in, or sysfs, has comes behind it, and is a finding; so
// is a live module that only the list has.
func Modules(v *kernel.View) ([]Module, error) {
	return confirmed(v, func() ([]Module, error) { return listModules(v) })
}

// listModules is Modules for one look.
func listModules(v *kernel.View) ([]Module, error) {
	r := &moduleReader{v: v, uses: budget{maxModuleUses}}
	var err error
	if r.l, err = kernel.Layout[moduleLayout](v.Kernel); err != nil {
		return nil, err
	}
	if !r.l.MemBase.Known && !r.l.CoreBase.Known {
		return nil, fmt.Errorf("module.mem or module.core_layout: %w", btf.ErrNoField)
	}
	set, err := r.gather()
	if err != nil {
		return nil, err
	}
	r.compare(set)
	out := make([]Module, 0, len(set.rows))
	for _, row := range set.rows {
		if row.state != moduleUnformed {
			out = append(out, row.Module)
		}
	}
	return out, nil
}

type moduleReader struct {
	v    *kernel.View
	l    *moduleLayout
	uses budget
}

// moduleRow is a module while it is being read.
type moduleRow struct {
	Module
	state uint64
}

// moduleSet is the modules found, and where each was.
type moduleSet struct {
	rows                   []moduleRow
	inList, inTree, inSys  map[mem.Virt]bool
	listErr, treeErr, sErr error
}

// gather reads all modules there are. The tree and sysfs are walked first: they are
// shallow, and what they lead to holds the links of the list.
func (r *moduleReader) gather() (*moduleSet, error) {
	s := &moduleSet{inTree: map[mem.Virt]bool{}, inSys: map[mem.Virt]bool{}, inList: map[mem.Virt]bool{}}
	err := r.v.Do(func(w *kernel.Walk) {
		s.inTree, s.inSys = map[mem.Virt]bool{}, map[mem.Virt]bool{}
		s.treeErr = w.Try(func() { r.tree(w, s.inTree) })
		s.sErr = w.Try(func() { r.sysfs(w, s.inSys) })
	})
	if err != nil {
		return nil, err
	}
	known := sortedAddrs(s.inTree, s.inSys)
	rows, err := r.read(known)
	if err != nil {
		return nil, err
	}
	order, err := r.listed()
	if s.listErr = err; r.v.Snapshot().Err() != nil {
		return nil, err
	}
	for _, a := range order {
		s.inList[a] = true
	}
	missing := slices.DeleteFunc(slices.Clone(order), func(a mem.Virt) bool { return s.inTree[a] || s.inSys[a] })
	more, err := r.read(missing)
	if err != nil {
		return nil, err
	}
	s.rows = inOrder(order, append(rows, more...))
	return s, nil
}

// sortedAddrs returns the members of the sets, each once, ascending.
func sortedAddrs(sets ...map[mem.Virt]bool) []mem.Virt {
	all := map[mem.Virt]bool{}
	for _, s := range sets {
		for a := range s {
			all[a] = true
		}
	}
	out := make([]mem.Virt, 0, len(all))
	for a := range all {
		out = append(out, a)
	}
	slices.Sort(out)
	return out
}

// inOrder sorts rows as order has them; what is not in it comes last, as it is.
func inOrder(order []mem.Virt, rows []moduleRow) []moduleRow {
	at := make(map[mem.Virt]int, len(order))
	for i, a := range order {
		at[a] = i
	}
	place := func(m *moduleRow) int {
		if i, ok := at[m.Addr]; ok {
			return i
		}
		return len(order)
	}
	slices.SortStableFunc(rows, func(a, b moduleRow) int { return place(&a) - place(&b) })
	return rows
}

// read reads the modules at addrs.
func (r *moduleReader) read(addrs []mem.Virt) ([]moduleRow, error) {
	rows, held := make([]moduleRow, len(addrs)), make([]uint64, len(addrs))
	if len(addrs) > maxModules {
		return nil, fmt.Errorf("%d modules: %w", len(addrs), kernel.ErrTooLong)
	}
	err := r.v.Each(len(addrs), func(i int, w *kernel.Walk) {
		r.uses.back(&held[i])
		rows[i] = r.module(w, addrs[i], &held[i])
	},
		func(i int) { rows[i].Moved = true })
	return rows, err
}

// listed returns the modules that the list "modules" links (kernel/module/main.c).
func (r *moduleReader) listed() (order []mem.Virt, err error) {
	head, err := r.v.Symbol("modules")
	if err != nil {
		return nil, err
	}
	err = r.v.Do(func(w *kernel.Walk) {
		order = nil
		list(w, head, func(node mem.Virt) bool {
			order = append(order, node-mem.Virt(r.l.List.Offset))
			if len(order) > maxModules {
				w.Failf("list of modules: %w", kernel.ErrTooLong)
			}
			return true
		})
	})
	return order, err
}

// module reads the struct module at m (kernel/module/procfs.c, m_show).
func (r *moduleReader) module(w *kernel.Walk, m mem.Virt, held *uint64) (row moduleRow) {
	l := r.l
	row.Addr, row.UsedBy, row.Errors = m, []string{}, []string{}
	fail := func(part string, err error) {
		if s := message(part, err); s != "" {
			row.Errors = append(row.Errors, s)
		}
	}
	fail("module", w.Try(func() {
		w.Guard(m, l.State)
		row.Name, row.state = w.Text(m, l.Name), w.Uint(m, l.State)
		row.State = moduleState(row.state)
		row.Taints = moduleTaints(w.Uint(m, l.Taints), row.state)
	}))
	fail("memory", w.Try(func() {
		row.Base, row.Size = r.memory(w, m)
		row.Address = fmt.Sprintf("0x%016x", uint64(row.Base))
	}))
	if l.Refcnt.Known && l.Sources.Known && l.Source.Known && l.Link.Known {
		fail("refcount", w.Try(func() {
			n := int(w.Int(m, l.Refcnt)) - moduleRefBase
			if w.OK() {
				row.Refcount = &n
			}
		}))
		fail("used_by", w.Try(func() { row.UsedBy = r.users(w, m, held) }))
	}
	return row
}

// memory returns where a module's text lies and how much memory it has in all.
func (r *moduleReader) memory(w *kernel.Walk, m mem.Virt) (base mem.Virt, size uint64) {
	l := r.l
	if !l.MemBase.Known {
		return w.Ptr(m, l.CoreBase), w.Uint(m, l.CoreSize) + w.Uint(m, l.InitSize)
	}
	for i := range l.Mem.Len() {
		part := w.At(m, l.Mem) + mem.Virt(i*int(l.Mem.Elem))
		if i == 0 { // MOD_TEXT
			base = w.Ptr(part, l.MemBase)
		}
		size += w.Uint(part, l.MemSize)
	}
	return base, size
}

// users returns the names of the modules that use m, in the kernel's order.
func (r *moduleReader) users(w *kernel.Walk, m mem.Virt, held *uint64) []string {
	l := r.l
	names := []string{}
	w.Guard(m, l.Sources)
	list(w, w.At(m, l.Sources), func(node mem.Virt) bool {
		use := node - mem.Virt(l.Link.Offset)
		names = append(names, w.Text(w.Ptr(use, l.Source), l.Name))
		return r.uses.take(w, held, 1)
	})
	if w.Ptr(m, l.Init) != 0 && w.Ptr(m, l.Exit) == 0 {
		names = append(names, "[permanent]")
	}
	return names
}

func moduleState(s uint64) string {
	switch s {
	case moduleGoing:
		return "Unloading"
	case moduleComing:
		return "Loading"
	}
	return "Live"
}

// moduleTaintLetters are the flags a module can set, by their bit
// (kernel/panic.c, taint_flags); a space is one of the kernel as a whole.
const moduleTaintLetters = "PF        C OE KXTNJ"

// moduleTaints renders a module's taints as module_flags does.
func moduleTaints(taints, state uint64) string {
	if taints == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteByte('(')
	for i := range len(moduleTaintLetters) {
		if c := moduleTaintLetters[i]; taints>>i&1 != 0 && c != ' ' {
			b.WriteByte(c)
		}
	}
	switch state {
	case moduleGoing:
		b.WriteByte('-')
	case moduleComing:
		b.WriteByte('+')
	}
	b.WriteByte(')')
	return b.String()
}
