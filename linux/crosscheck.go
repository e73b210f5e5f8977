package linux

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

func taskName(tid int) string { return fmt.Sprintf("task %d", tid) }

// crossCheck compares rows, which came from the PID IDR, with the list that links
// all thread group leaders from init_task on (include/linux/sched/signal.h,
// for_each_process). It returns the tasks only the list has.
func (r *taskReader) crossCheck(rows []taskRow) (more []taskRow, err error) {
	init, err := r.v.Symbol("init_task")
	if err != nil {
		return nil, err
	}
	listed, listErr := r.taskList(init)
	if err := r.v.Snapshot().Err(); err != nil {
		return nil, err
	}
	if listErr != nil {
		r.v.Find("task list", "%v", listErr)
	}
	inIDR := make(map[mem.Virt]bool, len(rows))
	for i := range rows {
		row := &rows[i]
		if !row.present {
			continue
		}
		if row.TID != row.index {
			r.v.Find(taskName(row.TID), "%q is in the PID IDR under %d", row.Comm, row.index)
		}
		if !row.leader {
			continue
		}
		if inIDR[row.Addr] = true; listErr == nil && !listed[row.Addr] {
			r.v.Find(taskName(row.TID), "%q is in the PID IDR but not in the task list", row.Comm)
		}
	}
	if listErr != nil {
		return nil, nil
	}
	return r.onlyListed(init, listed, inIDR)
}

// onlyListed reads and reports the tasks in the list that the IDR does not lead to.
func (r *taskReader) onlyListed(init mem.Virt, listed, inIDR map[mem.Virt]bool) ([]taskRow, error) {
	var missing []mem.Virt
	for task := range listed {
		if task != init && !inIDR[task] {
			missing = append(missing, task)
		}
	}
	slices.SortFunc(missing, cmp.Compare)
	rows := make([]taskRow, len(missing))
	errs, held := make([]error, len(missing)), make([]uint64, len(missing))
	total := budget{maxAllText}
	err := r.v.Each(len(missing), func(i int, w *kernel.Walk) {
		total.back(&held[i])
		rows[i] = taskRow{leader: true}
		r.task(w, missing[i], &rows[i])
		errs[i] = w.Err()
		rows[i].bound(w, &total, &held[i])
	}, func(i int) { rows[i].Moved = true })
	if err != nil {
		return nil, err
	}
	more := rows[:0]
	for i, err := range errs {
		if err != nil {
			r.v.Find(fmt.Sprintf("task_struct %v", missing[i]), "in the task list, but cannot be read: %v", err)
			continue
		}
		if rows[i].released() {
			continue // it was in the list when that was read
		}
		r.v.Find(taskName(rows[i].TID), "%q is in the task list but not in the PID IDR", rows[i].Comm)
		more = append(more, rows[i])
	}
	return more, nil
}

// taskList returns the addresses linked from init_task on, itself included.
func (r *taskReader) taskList(init mem.Virt) (tasks map[mem.Virt]bool, err error) {
	err = r.v.Do(func(w *kernel.Walk) {
		tasks = map[mem.Virt]bool{init: true}
		list(w, w.At(init, r.l.Tasks), func(node mem.Virt) bool {
			tasks[node-mem.Virt(r.l.Tasks.Offset)] = true
			if len(tasks) > maxTasks {
				w.Failf("more than %d tasks: %w", maxTasks, kernel.ErrTooLong)
			}
			return true
		})
	})
	return tasks, err
}

// released tells that a task has ended, was waited for, and holds nothing any more
// (kernel/exit.c, release_task): it can run no more, whatever still points to it.
func (r *taskRow) released() bool {
	return r.State == "X" && r.MM == 0 && r.Files == 0 && r.Nsp == 0
}

// exiting tells that a task has ended, and only waits to be waited for.
func (r *taskRow) exiting() bool { return r.State == "X" || r.State == "Z" }
