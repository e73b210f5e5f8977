package linux

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

func taskName(tid int) string { return fmt.Sprintf("task %d", tid) }

// taskLooks is how often a running machine is looked at before something about its
// tasks is reported: between the IDR and the list, tasks come and go.
const taskLooks = 4

// taskOddity is a task that is not in all places where a task is; or, with no address,
// that the list of tasks cannot be followed.
type taskOddity struct {
	addr  mem.Virt
	tid   int
	start time.Duration // another task can come to lie at the same place
	kind  taskOddityKind
}

type taskOddityKind int

const (
	listBroken taskOddityKind = iota
	notListed
	notInIDR
	misplaced
)

// crossCheck compares rows, which came from the PID IDR, with the list that links
// all thread group leaders from init_task on (include/linux/sched/signal.h,
// for_each_process). It returns the tasks only the list has. What does not add up is
// reported when, on a machine that runs, it is so each time one looks.
func (r *taskReader) crossCheck(rows []taskRow) (more []taskRow, err error) {
	odd, more, listErr, err := r.oddities(rows)
	if err != nil {
		return nil, err
	}
	if len(odd) > 0 && r.v.Source().Info().Live {
		if odd, err = r.confirm(odd); err != nil {
			return nil, err
		}
		more = slices.DeleteFunc(more, func(row taskRow) bool { return !odd.has(row.Addr, notInIDR) })
	}
	names := make(map[mem.Virt]string)
	for _, set := range [][]taskRow{rows, more} {
		for i := range set {
			names[set[i].Addr] = set[i].Comm
		}
	}
	for _, o := range odd {
		switch name := names[o.addr]; o.kind {
		case listBroken:
			r.v.Find("task list", "%v", listErr)
		case notListed:
			r.v.Find(taskName(o.tid), "%q is in the PID IDR but not in the task list", name)
		case notInIDR:
			r.v.Find(taskName(o.tid), "%q is in the task list but not in the PID IDR", name)
		case misplaced:
			r.v.Find(taskName(o.tid), "%q is in the PID IDR under another number", name)
		}
	}
	return more, nil
}

type taskOddities []taskOddity

func (o taskOddities) has(addr mem.Virt, kind taskOddityKind) bool {
	return slices.ContainsFunc(o, func(x taskOddity) bool { return x.addr == addr && x.kind == kind })
}

// confirm returns those of odd that are there each time the machine is looked at anew.
func (r *taskReader) confirm(odd taskOddities) (taskOddities, error) {
	for look := 1; look < taskLooks && len(odd) > 0; look++ {
		again, err := r.lookAgain()
		if err != nil {
			return nil, fmt.Errorf("look at the tasks again: %w", err)
		}
		seen := make(map[taskOddity]bool, len(again))
		for _, o := range again {
			seen[o] = true
		}
		odd = slices.DeleteFunc(odd, func(o taskOddity) bool { return !seen[o] })
	}
	return odd, nil
}

// lookAgain returns what does not add up in memory that is all read anew.
func (r *taskReader) lookAgain() (taskOddities, error) {
	v := r.v.Kernel.View(r.v.Snapshot().Context(), mem.Options{})
	defer v.Close()
	n, err := newTaskReader(v, TaskOptions{Brief: true})
	if err != nil {
		return nil, err
	}
	rows, err := n.fromIDR()
	if err != nil {
		return nil, err
	}
	odd, _, _, err := n.oddities(rows)
	return odd, err
}

// oddities compares rows with the task list. more is what only the list has, with an
// error where it is no task, and listErr why the list could not be followed.
func (r *taskReader) oddities(rows []taskRow) (odd taskOddities, more []taskRow, listErr, err error) {
	init, err := r.v.Symbol("init_task")
	if err != nil {
		return nil, nil, nil, err
	}
	add := func(row *taskRow, kind taskOddityKind) {
		odd = append(odd, taskOddity{row.Addr, row.TID, row.Start, kind})
	}
	listed, listErr := r.taskList(init)
	if err := r.v.Snapshot().Err(); err != nil {
		return nil, nil, nil, err
	}
	if listErr != nil {
		odd = append(odd, taskOddity{kind: listBroken})
	}
	inIDR := make(map[mem.Virt]bool, len(rows))
	for i := range rows {
		row := &rows[i]
		if !row.present {
			continue
		}
		if row.TID != row.index {
			add(row, misplaced)
		}
		if !row.leader {
			continue
		}
		if inIDR[row.Addr] = true; listErr == nil && !listed[row.Addr] {
			add(row, notListed)
		}
	}
	if listErr != nil {
		return odd, nil, listErr, nil
	}
	var missing []mem.Virt
	for task := range listed {
		if task != init && !inIDR[task] {
			missing = append(missing, task)
		}
	}
	slices.SortFunc(missing, cmp.Compare)
	more = make([]taskRow, len(missing))
	err = r.v.Each(len(missing), func(i int, w *kernel.Walk) {
		more[i] = taskRow{leader: true}
		r.task(w, missing[i], &more[i])
	}, func(i int) { more[i].Moved = true })
	for i := range more {
		add(&more[i], notInIDR)
	}
	return odd, more, nil, err
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

// exiting tells that a task has ended, and only waits to be waited for.
func (r *taskRow) exiting() bool { return r.State == "X" || r.State == "Z" }
