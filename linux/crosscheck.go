package linux

import (
	"fmt"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

func taskName(tid int) string { return fmt.Sprintf("task %d", tid) }

// crossCheck compares rows, which came from the PID IDR, with the list that links
// all thread group leaders from init_task on (include/linux/sched/signal.h,
// for_each_process). It returns the tasks only the list has, and reports them and
// those the list lacks once a second look finds the same.
func (r *taskReader) crossCheck(rows []taskRow) (more []taskRow, err error) {
	init, err := r.v.Symbol("init_task")
	if err != nil {
		return nil, err
	}
	listed, walkErr := r.taskList(init)
	if err := r.v.Snapshot().Err(); err != nil {
		return nil, err
	}
	if walkErr != nil {
		r.v.Find("task list", "%v", walkErr)
		return nil, nil
	}
	inIDR := make(map[mem.Virt]bool, len(rows))
	for i := range rows {
		row := &rows[i]
		if !row.present || !row.leader {
			continue
		}
		inIDR[row.Addr] = true
		if !listed[row.Addr] && !row.exiting() {
			r.v.Find(taskName(row.TID), "%q is in the PID IDR but not in the task list", row.Comm)
		}
	}
	for task := range listed {
		if task == init || inIDR[task] {
			continue
		}
		row := taskRow{leader: true}
		if err := r.v.Do(func(w *kernel.Walk) { row = taskRow{leader: true}; r.task(w, task, &row) }); err != nil {
			r.v.Find(fmt.Sprintf("task_struct %v", task), "in the task list, but cannot be read: %v", err)
			continue
		}
		r.v.Find(taskName(row.TID), "%q is in the task list but not in the PID IDR", row.Comm)
		more = append(more, row)
	}
	return more, nil
}

// exiting tells that a task is on its way out: it leaves the list and the IDR at
// slightly different moments.
func (r *taskRow) exiting() bool { return r.State == "X" || r.State == "Z" }

// taskList returns the addresses linked from init_task on, itself included.
func (r *taskReader) taskList(init mem.Virt) (tasks map[mem.Virt]bool, err error) {
	err = r.v.Do(func(w *kernel.Walk) {
		tasks = map[mem.Virt]bool{init: true}
		list(w, w.At(init, r.l.Tasks), func(node mem.Virt) bool {
			tasks[node-mem.Virt(r.l.Tasks.Offset)] = true
			return true
		})
	})
	return tasks, err
}
