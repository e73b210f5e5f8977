package linux

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Task is a process, or a thread of one, as /proc/PID of the machine's first PID
// namespace shows it. What the machine has no value for is nil.
type Task struct {
	PID          int        `json:"pid"` // thread group
	TID          int        `json:"tid"`
	PPID         int        `json:"ppid"`
	UID          uint32     `json:"uid"`
	EUID         uint32     `json:"euid"`
	GID          uint32     `json:"gid"`
	Comm         string     `json:"comm"`
	State        string     `json:"state"` // one letter, as in /proc/PID/stat
	Nice         int        `json:"nice"`
	Threads      *int       `json:"threads"` // nil with Brief
	StartTime    *time.Time `json:"start_time"`
	CPUSeconds   *float64   `json:"cpu_seconds"` // of all threads, or of this one with threads listed; nil with Brief
	VSize        *uint64    `json:"vsize_bytes"`
	RSS          *uint64    `json:"rss_bytes"`
	Exe          *string    `json:"exe"`
	Cwd          *string    `json:"cwd"`
	Args         []string   `json:"args"`    // nil when they could not be read
	NSPIDs       []int      `json:"ns_pids"` // in each PID namespace from the first to its own
	KernelThread bool       `json:"kernel_thread"`
	Moved        bool       `json:"moved"`  // memory kept changing while this was read
	Errors       []string   `json:"errors"` // parts that could not be read

	Addr  mem.Virt      `json:"-"` // of the task_struct
	MM    mem.Virt      `json:"-"` // of the mm_struct, 0 for kernel threads and zombies
	Files mem.Virt      `json:"-"` // of the files_struct, 0 for zombies
	Nsp   mem.Virt      `json:"-"` // of the nsproxy, 0 for zombies
	Start time.Duration `json:"-"` // after boot
}

// taskLayout is include/linux/sched.h, sched/signal.h, cred.h, pid.h, fs_struct.h.
type taskLayout struct {
	PIDTasks   btf.Field `btf:"pid.tasks"`
	PIDLevel   btf.Field `btf:"pid.level"`
	PIDNumbers btf.Field `btf:"pid.numbers"`
	Upid       btf.Field `btf:"upid"`
	UpidNr     btf.Field `btf:"upid.nr"`
	PIDLinks   btf.Field `btf:"task_struct.pid_links"`
	Tasks      btf.Field `btf:"task_struct.tasks"`
	ThreadPID  btf.Field `btf:"task_struct.thread_pid"`
	ThreadNode btf.Field `btf:"task_struct.thread_node"`
	ThreadHead btf.Field `btf:"signal_struct.thread_head"`

	TID        btf.Field `btf:"task_struct.pid"`
	TGID       btf.Field `btf:"task_struct.tgid"`
	RealParent btf.Field `btf:"task_struct.real_parent"`
	RealCred   btf.Field `btf:"task_struct.real_cred"`
	Comm       btf.Field `btf:"task_struct.comm"`
	State      btf.Field `btf:"task_struct.__state task_struct.state"` // __state since 5.14
	ExitState  btf.Field `btf:"task_struct.exit_state"`
	Flags      btf.Field `btf:"task_struct.flags"`
	StaticPrio btf.Field `btf:"task_struct.static_prio"`
	Started    btf.Field `btf:"task_struct.start_boottime"`
	Runtime    btf.Field `btf:"task_struct.se.sum_exec_runtime"`
	Signal     btf.Field `btf:"task_struct.signal"`
	MM         btf.Field `btf:"task_struct.mm"`
	FS         btf.Field `btf:"task_struct.fs"`
	Files      btf.Field `btf:"task_struct.files"`
	Nsproxy    btf.Field `btf:"task_struct.nsproxy"`

	Threads     btf.Field `btf:"signal_struct.nr_threads"`
	DeadRuntime btf.Field `btf:"signal_struct.sum_sched_runtime"`

	UID  btf.Field `btf:"cred.uid"`
	EUID btf.Field `btf:"cred.euid"`
	GID  btf.Field `btf:"cred.gid"`

	Pwd  btf.Field `btf:"fs_struct.pwd"`
	Root btf.Field `btf:"fs_struct.root"`
}

// Numbers of enum pid_type (include/linux/pid_types.h) that have not changed since 4.19.
const (
	pidTypePID  = 0
	pidTypeTGID = 1
)

// Task flags, include/linux/sched.h.
const (
	flagWorker  = 0x00000020 // PF_WQ_WORKER
	flagKthread = 0x00200000 // PF_KTHREAD
)

// TaskOptions chooses what Tasks reads. Who a task is (pid, comm, uid, state, start)
// is always read.
type TaskOptions struct {
	Threads bool // list threads, not only processes
	Brief   bool // leave out exe, cwd, args, sizes, threads and CPU time
	PID     int  // only this process, with its threads; 0 means all
}

// Tasks lists the machine's processes by ascending pid. They come from the first
// PID namespace's IDR; the kernel's task list, kept apart from it, is the
// cross-check, and what only one of them has is a finding.
func Tasks(v *kernel.View, opts TaskOptions) ([]Task, error) {
	return confirmed(v, func() ([]Task, error) { return listTasks(v, opts) })
}

// listTasks is Tasks for one look.
func listTasks(v *kernel.View, opts TaskOptions) ([]Task, error) {
	r, err := newTaskReader(v, opts)
	if err != nil {
		return nil, err
	}
	rows, err := r.fromIDR()
	if err != nil {
		return nil, err
	}
	var more []taskRow
	switch {
	case opts.PID == 0:
		more, err = r.crossCheck(rows)
	case opts.Threads || !opts.Brief:
		more, err = r.otherThreads(rows)
	}
	if err != nil {
		return nil, err
	}
	return r.finish(append(rows, more...)), nil
}

// taskRow is a task while it is being read.
type taskRow struct {
	Task
	present bool // a task was found at all
	leader  bool
	index   int    // its place in the PID IDR
	runtime uint64 // of this thread, in nanoseconds
	dead    uint64 // of the process's ended threads
}

type taskReader struct {
	v    *kernel.View
	opts TaskOptions
	l    *taskLayout
	xa   *xarrayLayout
	path *pathLayout
	mm   *mmLayout
	kth  *kthreadLayout
	boot time.Time
	init xaEntry // pid 1, whose root directory paths are told from
}

func newTaskReader(v *kernel.View, opts TaskOptions) (*taskReader, error) {
	r := &taskReader{v: v, opts: opts}
	if err := kernel.Layouts(v.Kernel, &r.l, &r.xa, &r.path, &r.mm, &r.kth); err != nil {
		return nil, err
	}
	return r, nil
}

// maxTasks bounds the tasks of a machine; the kernel's own limit is four million
// (PID_MAX_LIMIT), whose rows would not fit the memory an answer may take.
const maxTasks = 1 << 18

// fromIDR reads the tasks that the PID IDR leads to.
func (r *taskReader) fromIDR() ([]taskRow, error) {
	pids, err := r.pids()
	if err != nil {
		return nil, err
	}
	rows, held := make([]taskRow, len(pids)), make([]uint64, len(pids))
	total := budget{maxAllText}
	err = r.v.Each(len(pids), func(i int, w *kernel.Walk) {
		total.back(&held[i])
		rows[i] = r.fromPID(w, pids[i])
		rows[i].bound(w, &total, &held[i])
	}, func(i int) { rows[i].Moved = true })
	return rows, err
}

// bound drops a row's texts when those of all rows are more than an answer may hold.
func (r *taskRow) bound(w *kernel.Walk, total *budget, held *uint64) {
	n := textSize(r.Exe) + textSize(r.Cwd)
	for _, a := range r.Args {
		n += uint64(len(a)) + stringSize
	}
	if err := w.Try(func() { total.take(w, held, n) }); err != nil {
		r.Exe, r.Cwd, r.Args = nil, nil, nil
		r.Errors = append(r.Errors, "exe, cwd, args: "+err.Error())
	}
}

type pidNSLayout struct {
	IDR btf.Field `btf:"pid_namespace.idr"`
}

// pids returns the entries of init_pid_ns.idr (kernel/pid.c): a struct pid by number.
func (r *taskReader) pids() (pids []xaEntry, err error) {
	ns, err := r.v.Symbol("init_pid_ns")
	if err != nil {
		return nil, err
	}
	l, err := kernel.Layout[pidNSLayout](r.v.Kernel)
	if err != nil {
		return nil, err
	}
	err = r.v.Do(func(w *kernel.Walk) {
		err := w.Try(func() {
			if pids = xarrayEntries(w, r.xa, w.At(ns, l.IDR)); len(pids) > maxTasks {
				w.Failf("PID IDR: more than %d tasks: %w", maxTasks, kernel.ErrTooLong)
			}
		})
		boot, bootErr := BootTime(w)
		w.Fail(err)
		if bootErr == nil {
			r.boot = boot
		}
	})
	if err != nil {
		return nil, err
	}
	if len(pids) > 0 && pids[0].Index == 1 {
		r.init = pids[0]
	}
	if r.opts.PID != 0 {
		pids = slices.DeleteFunc(pids, func(e xaEntry) bool { return e.Index != uint64(r.opts.PID) })
	}
	return pids, nil
}

// fromPID reads the task a struct pid stands for.
func (r *taskReader) fromPID(w *kernel.Walk, e xaEntry) (row taskRow) {
	if w.Follow(e.Slot, link) != e.Ptr && w.OK() {
		return row // it has ended since the IDR was read
	}
	heads := w.At(e.Ptr, r.l.PIDTasks)
	w.Guard(heads+pidTypePID*8, link)
	first := w.Pointer(heads + pidTypePID*8)
	row.TID, row.index = int(e.Index), int(e.Index)
	if w.OK() && first == 0 {
		return row // only a process group's or session's number, or a task now leaving
	}
	row.leader = w.Pointer(heads+pidTypeTGID*8) != 0
	if !row.leader && r.opts.Brief && !r.opts.Threads {
		return row
	}
	task := first - mem.Virt(r.l.PIDLinks.Offset)
	r.task(w, task, &row)
	if err := w.Try(func() { row.NSPIDs = r.numbers(w, e.Ptr) }); err != nil {
		row.Errors = append(row.Errors, "ns_pids: "+err.Error())
	}
	if w.OK() && row.TID != row.index {
		w.Failf("its pid differs from its place in the PID IDR, %d", row.index)
		row.Errors = append(row.Errors, message("pid", w.Err()))
	}
	return row
}

// numbers returns the pid in each namespace, outermost first.
func (r *taskReader) numbers(w *kernel.Walk, pid mem.Virt) []int {
	const maxLevel = 32 // MAX_PID_NS_LEVEL, include/linux/pid_namespace.h
	level := w.Uint(pid, r.l.PIDLevel)
	if level > maxLevel {
		w.Failf("pid namespace level %d: %w", level, kernel.ErrTooLong)
		return nil
	}
	out := make([]int, 0, level+1)
	at := w.At(pid, r.l.PIDNumbers)
	for i := range level + 1 {
		out = append(out, int(w.Int(at+mem.Virt(i*uint64(r.l.Upid.Size)), r.l.UpidNr)))
	}
	return out
}

// task reads the task_struct at t into row.
func (r *taskReader) task(w *kernel.Walk, t mem.Virt, row *taskRow) {
	l := r.l
	row.Addr, row.present = t, true
	if !row.leader && !r.opts.Threads {
		w.Want(t, l.TID, l.TGID, l.Runtime)
	} else {
		w.Want(t, l.TID, l.TGID, l.Runtime, l.Comm, l.Flags, l.State, l.ExitState, l.StaticPrio, l.Started, l.MM,
			l.Files, l.Nsproxy, l.FS, l.RealParent, l.RealCred, l.Signal, l.Tasks)
	}
	w.Guard(t, l.TID)
	row.TID, row.PID = int(w.Int(t, l.TID)), int(w.Int(t, l.TGID))
	row.runtime = w.Uint(t, l.Runtime)
	if w.OK() && !row.leader && !r.opts.Threads {
		return // only its run time counts
	}
	row.Comm = w.Text(t, l.Comm)
	flags := w.Uint(t, l.Flags)
	row.KernelThread = flags&flagKthread != 0
	row.State = stateLetter(w.Uint(t, l.State), w.Uint(t, l.ExitState))
	row.Nice = int(w.Int(t, l.StaticPrio)) - 120 // DEFAULT_PRIO, include/linux/sched/prio.h
	row.Start = time.Duration(w.Uint(t, l.Started))
	row.MM, row.Files, row.Nsp = w.Follow(t, l.MM), w.Ptr(t, l.Files), w.Ptr(t, l.Nsproxy)
	if !w.OK() {
		row.Errors = append(row.Errors, message("task_struct", w.Err()))
		return
	}
	fs := w.Ptr(t, l.FS)
	r.try(w, row, "ppid", func() { row.PPID = int(w.Int(w.Ptr(t, l.RealParent), l.TGID)) })
	r.try(w, row, "uid", func() {
		cred := w.Follow(t, l.RealCred)
		row.UID, row.EUID, row.GID = uint32(w.Uint(cred, l.UID)), uint32(w.Uint(cred, l.EUID)), uint32(w.Uint(cred, l.GID))
	})
	// Whether a dead leader's process lives on, its threads tell.
	if !r.opts.Brief || row.exiting() {
		r.try(w, row, "threads", func() {
			signal := w.Ptr(t, l.Signal)
			w.Want(signal, l.Threads, l.DeadRuntime)
			n := int(w.Int(signal, l.Threads))
			row.Threads, row.dead = &n, w.Uint(signal, l.DeadRuntime)
		})
	}
	if row.KernelThread {
		r.try(w, row, "comm", func() { row.Comm = kthreadName(w, r.kth, t, row.Comm, flags&flagWorker != 0) })
	}
	if !r.opts.Brief {
		r.details(w, row, fs)
	}
}

// details reads what lies behind a task's mm and fs.
func (r *taskReader) details(w *kernel.Walk, row *taskRow, fs mem.Virt) {
	root := path{}
	rootErr := w.Try(func() { root = r.rootDir(w) })
	if fs != 0 {
		r.try(w, row, "cwd", func() {
			w.Fail(rootErr)
			s, _ := pathText(w, r.path, readPath(w, r.path, w.At(fs, r.l.Pwd)), root)
			row.Cwd = &s
		})
	}
	row.Args = []string{}
	if row.MM == 0 {
		return
	}
	w.Want(row.MM, r.mm.PGD, r.mm.TotalVM, r.mm.RSS, r.mm.ExeFile, r.mm.ArgStart, r.mm.EnvEnd)
	r.try(w, row, "memory sizes", func() {
		vsize, rss := r.mm.sizes(w, row.MM)
		row.VSize, row.RSS = &vsize, &rss
	})
	r.try(w, row, "exe", func() {
		w.Fail(rootErr)
		if file := w.Follow(row.MM, r.mm.ExeFile); file != 0 {
			s, _ := pathText(w, r.path, readPath(w, r.path, w.At(file, r.mm.FilePath)), root)
			row.Exe = &s
		}
	})
	if err := w.Try(func() { row.Args = splitArgs(r.mm.cmdline(w, row.MM)) }); err != nil {
		row.Args = nil
		row.Errors = append(row.Errors, "args: "+err.Error())
	}
}

// try runs a part of a row; an error becomes one of the row's errors.
func (r *taskReader) try(w *kernel.Walk, row *taskRow, part string, f func()) {
	if err := w.Try(f); err != nil {
		row.Errors = append(row.Errors, part+": "+err.Error())
	}
}

// rootDir returns pid 1's root directory.
func (r *taskReader) rootDir(w *kernel.Walk) path {
	if r.init.Ptr == 0 {
		w.Failf("pid 1 is not in the PID IDR")
		return path{}
	}
	task := w.Pointer(w.At(r.init.Ptr, r.l.PIDTasks)) - mem.Virt(r.l.PIDLinks.Offset)
	return readPath(w, r.path, w.At(w.Ptr(task, r.l.FS), r.l.Root))
}

// finish turns rows into tasks: threads' run times are added to their process.
func (r *taskReader) finish(rows []taskRow) []Task {
	total := make(map[int]uint64)
	for i := range rows {
		if rows[i].present {
			total[rows[i].PID] += rows[i].runtime
		}
	}
	out := make([]Task, 0, len(rows))
	for i := range rows {
		row := &rows[i]
		if !row.present || !row.leader && !r.opts.Threads {
			continue
		}
		ns := row.runtime
		if !r.opts.Threads {
			ns = total[row.PID] + row.dead
		}
		if !r.opts.Brief {
			seconds := float64(ns) / 1e9
			row.CPUSeconds = &seconds
		}
		if !r.boot.IsZero() {
			at := r.boot.Add(row.Start).UTC()
			row.StartTime = &at
		}
		if row.Errors == nil {
			row.Errors = []string{}
		}
		out = append(out, row.Task)
	}
	slices.SortFunc(out, func(a, b Task) int { return a.TID - b.TID })
	return out
}

// stateLetter is task_state_index and task_index_to_char (include/linux/sched.h).
func stateLetter(state, exit uint64) string {
	const (
		report  = 0x7f   // TASK_REPORT
		idle    = 0x402  // TASK_IDLE: TASK_UNINTERRUPTIBLE | TASK_NOLOAD
		rtlock  = 0x1000 // TASK_RTLOCK_WAIT
		frozen  = 0x8000 // TASK_FROZEN, since 6.1
		letters = "RSDTtXZPI"
	)
	s := (state | exit) & report
	switch {
	case state&(rtlock|frozen) != 0:
		s = 2 // TASK_UNINTERRUPTIBLE
	case state&idle == idle:
		return "I"
	}
	i := 0
	for ; s != 0; s >>= 1 {
		i++
	}
	return letters[i : i+1]
}

// splitArgs takes a command line apart at its NULs.
func splitArgs(b []byte) []string {
	if len(b) == 0 {
		return []string{}
	}
	return strings.Split(string(bytes.TrimSuffix(b, []byte{0})), "\x00")
}
