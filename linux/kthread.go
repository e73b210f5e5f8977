package linux

import (
	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// kthreadLayout is kernel/kthread.c and kernel/workqueue_internal.h.
type kthreadLayout struct {
	Kthread     btf.Field `btf:"task_struct.worker_private task_struct.set_child_tid"` // worker_private since 5.17
	FullName    btf.Field `btf:"kthread.full_name ?"`                                  // since 5.17
	Data        btf.Field `btf:"kthread.data"`
	Pool        btf.Field `btf:"worker.pool"`
	Desc        btf.Field `btf:"worker.desc"`
	CurrentWork btf.Field `btf:"worker.current_work"`
}

// Sizes of the buffers /proc names kernel threads in (fs/proc/array.c, proc_task_name).
const maxThreadName = 63

// kthreadName returns a kernel thread's name as /proc/PID/comm shows it: longer
// than comm where the kernel kept the whole, and with what a worker works on.
func kthreadName(w *kernel.Walk, l *kthreadLayout, task mem.Virt, comm string, worker bool) string {
	k := w.Ptr(task, l.Kthread)
	if !w.OK() || k == 0 {
		return comm
	}
	name := comm
	// Workers show the whole name since 6.10, which brought format_worker_id.
	_, whole := w.View().Symbols().Lookup("format_worker_id")
	if l.FullName.Known && (!worker || whole) {
		if full := w.Ptr(k, l.FullName); full != 0 {
			name = w.String(full, maxString)
		}
	}
	if worker {
		name += workerSuffix(w, l, w.Ptr(k, l.Data))
	}
	return name[:min(len(name), maxThreadName)]
}

// workerSuffix is what wq_worker_comm appends (kernel/workqueue.c): the last work,
// after "+" while it runs.
func workerSuffix(w *kernel.Walk, l *kthreadLayout, worker mem.Virt) string {
	if w.Ptr(worker, l.Pool) == 0 {
		return ""
	}
	desc := w.Text(worker, l.Desc)
	switch {
	case desc == "":
		return ""
	case w.Ptr(worker, l.CurrentWork) != 0:
		return "+" + desc
	}
	return "-" + desc
}
