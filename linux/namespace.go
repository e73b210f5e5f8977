package linux

import (
	"fmt"
	"slices"
	"strings"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Namespace is a namespace of any kind.
type Namespace struct {
	Type      string   `json:"type"`           // mnt, uts, ipc, net, pid, user, cgroup, time
	Inode     uint64   `json:"inode"`          // the number in /proc/PID/ns's links
	Processes int      `json:"processes"`      // in it, by their main threads
	PID       *int     `json:"pid"`            // the lowest of them
	Comm      *string  `json:"comm"`           // its name
	UserNS    *uint64  `json:"user_namespace"` // inode of the user namespace that owns it
	OwnerUID  *uint32  `json:"owner_uid"`      // of a user namespace: who made it, in the first one's ids
	Parent    *uint64  `json:"parent"`         // inode of a pid or user namespace's parent
	Moved     bool     `json:"moved"`          // memory kept changing while this was read
	Errors    []string `json:"errors"`         // parts that could not be read

	Addr mem.Virt `json:"-"` // of the struct pid_namespace, net, …
}

// A namespaceKind says where a kind of namespace hangs and how it is laid out.
type namespaceKind struct {
	name   string
	ops    string    // the kernel's name of its operations
	common btf.Field // its ns_common
	owner  btf.Field // its user_ns; of a user namespace: its parent
	parent btf.Field
}

// namespaceLayout is include/linux/nsproxy.h and the kinds' own headers.
type namespaceLayout struct {
	Mnt      btf.Field `btf:"nsproxy.mnt_ns"`
	UTS      btf.Field `btf:"nsproxy.uts_ns"`
	IPC      btf.Field `btf:"nsproxy.ipc_ns"`
	Net      btf.Field `btf:"nsproxy.net_ns"`
	PIDKids  btf.Field `btf:"nsproxy.pid_ns_for_children"`
	Cgroup   btf.Field `btf:"nsproxy.cgroup_ns ?"`
	Time     btf.Field `btf:"nsproxy.time_ns ?"` // with CONFIG_TIME_NS
	TimeKids btf.Field `btf:"nsproxy.time_ns_for_children ?"`

	Nsproxy  btf.Field `btf:"task_struct.nsproxy"`
	RealCred btf.Field `btf:"task_struct.real_cred"`
	CredUser btf.Field `btf:"cred.user_ns"`
	PID      btf.Field `btf:"task_struct.thread_pid"`
	PIDLevel btf.Field `btf:"pid.level"`
	Numbers  btf.Field `btf:"pid.numbers"`
	Upid     btf.Field `btf:"upid"`
	UpidNS   btf.Field `btf:"upid.ns"`

	Inum btf.Field `btf:"ns_common.inum"`
	Ops  btf.Field `btf:"ns_common.ops"`

	MntNS       btf.Field `btf:"mnt_namespace.ns"`
	MntOwner    btf.Field `btf:"mnt_namespace.user_ns"`
	UTSNS       btf.Field `btf:"uts_namespace.ns"`
	UTSOwner    btf.Field `btf:"uts_namespace.user_ns"`
	IPCNS       btf.Field `btf:"ipc_namespace.ns"`
	IPCOwner    btf.Field `btf:"ipc_namespace.user_ns"`
	NetNS       btf.Field `btf:"net.ns"`
	NetOwner    btf.Field `btf:"net.user_ns"`
	NetList     btf.Field `btf:"net.list"`
	PIDNS       btf.Field `btf:"pid_namespace.ns"`
	PIDOwner    btf.Field `btf:"pid_namespace.user_ns"`
	PIDParent   btf.Field `btf:"pid_namespace.parent"`
	UserNS      btf.Field `btf:"user_namespace.ns"`
	UserParent  btf.Field `btf:"user_namespace.parent"`
	UserUID     btf.Field `btf:"user_namespace.owner"`
	CgroupNS    btf.Field `btf:"cgroup_namespace.ns ?"`
	CgroupOwner btf.Field `btf:"cgroup_namespace.user_ns ?"`
	TimeNS      btf.Field `btf:"time_namespace.ns ?"`
	TimeOwner   btf.Field `btf:"time_namespace.user_ns ?"`
}

// Kinds of namespaces, indexes of namespaceReader.kinds.
const (
	nsMnt = iota
	nsUTS
	nsIPC
	nsNet
	nsPID
	nsUser
	nsCgroup
	nsTime
)

// maxNamespaces bounds the namespaces of a machine.
const maxNamespaces = 1 << 16

// Namespaces lists the machine's namespaces by kind and inode: those of its
// threads, those they came from or belong to, and network namespaces that no
// process is in. Others without a process, kept by a mount or a descriptor only,
// are not found.
func Namespaces(v *kernel.View) ([]Namespace, error) {
	return confirmed(v, func() ([]Namespace, error) { return listNamespaces(v) })
}

// listNamespaces is Namespaces for one look.
func listNamespaces(v *kernel.View) ([]Namespace, error) {
	l, err := kernel.Layout[namespaceLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	tasks, err := Tasks(v, TaskOptions{Brief: true, Threads: true})
	if err != nil {
		return nil, err
	}
	r := &namespaceReader{v: v, l: l, kinds: l.kinds(), rows: map[mem.Virt]*namespaceRow{}}
	if err := r.ofTasks(tasks); err != nil {
		return nil, err
	}
	if err := r.settle(); err != nil {
		return nil, err
	}
	if err := r.networks(); err != nil {
		return nil, err
	}
	if err := r.settle(); err != nil {
		return nil, err
	}
	return r.finish(), nil
}

func (l *namespaceLayout) kinds() []namespaceKind {
	none := btf.Field{}
	return []namespaceKind{
		nsMnt:    {"mnt", "mntns_operations", l.MntNS, l.MntOwner, none},
		nsUTS:    {"uts", "utsns_operations", l.UTSNS, l.UTSOwner, none},
		nsIPC:    {"ipc", "ipcns_operations", l.IPCNS, l.IPCOwner, none},
		nsNet:    {"net", "netns_operations", l.NetNS, l.NetOwner, none},
		nsPID:    {"pid", "pidns_operations", l.PIDNS, l.PIDOwner, l.PIDParent},
		nsUser:   {"user", "userns_operations", l.UserNS, l.UserParent, l.UserParent},
		nsCgroup: {"cgroup", "cgroupns_operations", l.CgroupNS, l.CgroupOwner, none},
		nsTime:   {"time", "timens_operations", l.TimeNS, l.TimeOwner, none},
	}
}

type namespaceReader struct {
	v     *kernel.View
	l     *namespaceLayout
	kinds []namespaceKind
	rows  map[mem.Virt]*namespaceRow
	fresh []*namespaceRow // not read yet
}

// namespaceRow is a namespace while it is being read.
type namespaceRow struct {
	Namespace
	kind          int
	owner, parent mem.Virt
}

// add notes the namespace of a kind at a.
func (r *namespaceReader) add(kind int, a mem.Virt) *namespaceRow {
	if a == 0 {
		return nil
	}
	row, ok := r.rows[a]
	if !ok && len(r.rows) < maxNamespaces {
		row = &namespaceRow{kind: kind}
		row.Type, row.Addr, row.Errors = r.kinds[kind].name, a, []string{}
		r.rows[a] = row
		r.fresh = append(r.fresh, row)
	}
	if row != nil && row.kind != kind {
		r.v.Find(fmt.Sprintf("namespace %v", a), "taken for a %s and a %s namespace", r.kinds[kind].name, row.Type)
		return nil
	}
	return row
}

// taskNamespaces is the namespaces one task is in, by kind, and those its
// children will be in.
type taskNamespaces struct {
	in   [nsTime + 1]mem.Virt
	kids [2]mem.Virt // pid, time
	errs []string
}

// ofTasks notes the namespaces of tasks and counts their processes.
func (r *namespaceReader) ofTasks(tasks []Task) error {
	each := make([]taskNamespaces, len(tasks))
	err := r.v.Each(len(tasks), func(i int, w *kernel.Walk) { each[i] = r.ofTask(w, &tasks[i]) }, nil)
	if err != nil {
		return err
	}
	for i := range tasks {
		t := &tasks[i]
		for _, e := range each[i].errs {
			r.v.Find(taskName(t.TID), "namespaces: %s", e)
		}
		for kind, a := range each[i].in {
			row := r.add(kind, a)
			if row == nil || t.PID != t.TID {
				continue
			}
			row.Processes++
			if row.PID == nil || t.PID < *row.PID {
				row.PID, row.Comm = &t.PID, &t.Comm
			}
		}
		r.add(nsPID, each[i].kids[0])
		r.add(nsTime, each[i].kids[1])
	}
	return nil
}

func (r *namespaceReader) ofTask(w *kernel.Walk, t *Task) (ns taskNamespaces) {
	l := r.l
	try := func(f func()) {
		if s := message("", w.Try(f)); s != "" {
			ns.errs = append(ns.errs, strings.TrimPrefix(s, ": "))
		}
	}
	try(func() {
		if p := w.Follow(t.Addr, l.Nsproxy); p != 0 { // a zombie has none any more
			ns.in[nsMnt], ns.in[nsUTS], ns.in[nsIPC] = w.Ptr(p, l.Mnt), w.Ptr(p, l.UTS), w.Ptr(p, l.IPC)
			ns.in[nsNet], ns.kids[0] = w.Ptr(p, l.Net), w.Ptr(p, l.PIDKids)
			if l.Cgroup.Known && l.CgroupNS.Known {
				ns.in[nsCgroup] = w.Ptr(p, l.Cgroup)
			}
			if l.Time.Known && l.TimeNS.Known {
				ns.in[nsTime], ns.kids[1] = w.Ptr(p, l.Time), w.Ptr(p, l.TimeKids)
			}
		}
	})
	try(func() { ns.in[nsUser] = w.Ptr(w.Follow(t.Addr, l.RealCred), l.CredUser) })
	try(func() {
		pid := w.Follow(t.Addr, l.PID)
		if pid == 0 { // it is gone
			return
		}
		level := w.Uint(pid, l.PIDLevel)
		if level > maxPIDLevel {
			w.Failf("pid namespace level %d: %w", level, kernel.ErrTooLong)
			return
		}
		ns.in[nsPID] = w.Ptr(w.At(pid, l.Numbers)+mem.Virt(level*uint64(l.Upid.Size)), l.UpidNS)
	})
	return ns
}

// maxPIDLevel is MAX_PID_NS_LEVEL, include/linux/pid_namespace.h.
const maxPIDLevel = 32

// settle reads the namespaces noted and those they lead to, a generation in a few
// rounds; there are at most 33 of them (kernel/user_namespace.c, level).
func (r *namespaceReader) settle() error {
	for len(r.fresh) > 0 {
		rows := r.fresh
		r.fresh = nil
		err := r.v.Each(len(rows), func(i int, w *kernel.Walk) { r.read(w, rows[i]) },
			func(i int) { rows[i].Moved = true })
		if err != nil {
			return err
		}
		for _, row := range rows {
			r.add(nsUser, row.owner)
			if row.kind == nsPID {
				r.add(nsPID, row.parent)
			}
		}
	}
	return nil
}

// read reads one namespace.
func (r *namespaceReader) read(w *kernel.Walk, row *namespaceRow) {
	k, a := &r.kinds[row.kind], row.Addr
	row.Errors, row.owner, row.parent, row.OwnerUID = []string{}, 0, 0, nil
	err := w.Try(func() {
		common := w.At(a, k.common)
		w.Guard(common, r.l.Inum)
		row.Inode = w.Uint(common, r.l.Inum)
		row.owner = w.Ptr(a, k.owner)
		if k.parent.Known {
			row.parent = w.Ptr(a, k.parent)
		}
		if row.kind == nsUser {
			if uid := uint32(w.Uint(a, r.l.UserUID)); w.OK() {
				row.OwnerUID = &uid
			}
		}
		ops := w.Ptr(common, r.l.Ops)
		if want, err := r.v.Symbol(k.ops); w.OK() && err == nil && ops != want {
			w.Failf("its operations at %v are not those of a %s namespace", ops, k.name)
		}
	})
	if s := message("namespace", err); s != "" {
		row.Errors = append(row.Errors, s)
		row.owner, row.parent = 0, 0 // lead nowhere
	}
}

// networks notes all network namespaces (net/core/net_namespace.c, net_namespace_list).
func (r *namespaceReader) networks() error {
	head, err := r.v.Symbol("net_namespace_list")
	if err != nil {
		return err
	}
	var nets []mem.Virt
	err = r.v.Do(func(w *kernel.Walk) {
		nets = nil
		list(w, head, func(node mem.Virt) bool {
			nets = append(nets, node-mem.Virt(r.l.NetList.Offset))
			return len(nets) < maxNamespaces
		})
	})
	if err != nil {
		if r.v.Snapshot().Err() != nil {
			return err
		}
		r.v.Find("network namespaces", "their list cannot be followed: %v", err)
		return nil
	}
	for _, a := range nets {
		r.add(nsNet, a)
	}
	return nil
}

// finish links the rows to each other by inode and sorts them.
func (r *namespaceReader) finish() []Namespace {
	inode := func(a mem.Virt) *uint64 {
		if row, ok := r.rows[a]; ok && len(row.Errors) == 0 {
			return &row.Inode
		}
		return nil
	}
	out := make([]Namespace, 0, len(r.rows))
	for _, row := range r.rows {
		for _, e := range row.Errors {
			r.v.Find(fmt.Sprintf("%s namespace %v", row.Type, row.Addr), "%s", e)
		}
		row.UserNS, row.Parent = inode(row.owner), inode(row.parent)
		out = append(out, row.Namespace)
	}
	slices.SortFunc(out, func(a, b Namespace) int {
		if c := strings.Compare(a.Type, b.Type); c != 0 {
			return c
		}
		if a.Inode != b.Inode {
			if a.Inode < b.Inode {
				return -1
			}
			return 1
		}
		return int(int64(a.Addr) - int64(b.Addr))
	})
	return out
}
