package linux

import (
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// otherThreads reads the threads of the process in rows besides its leader, from the
// list that the process keeps of them (include/linux/sched/signal.h, for_each_thread).
func (r *taskReader) otherThreads(rows []taskRow) ([]taskRow, error) {
	var leader mem.Virt
	for i := range rows {
		if rows[i].present && rows[i].leader {
			leader = rows[i].Addr
		}
	}
	if leader == 0 {
		return nil, nil
	}
	var threads []mem.Virt
	err := r.v.Do(func(w *kernel.Walk) {
		threads = nil
		list(w, w.At(w.Ptr(leader, r.l.Signal), r.l.ThreadHead), func(node mem.Virt) bool {
			if t := node - mem.Virt(r.l.ThreadNode.Offset); t != leader {
				threads = append(threads, t)
			}
			return true
		})
	})
	if err != nil {
		return nil, err
	}
	more := make([]taskRow, len(threads))
	err = r.v.Each(len(threads), func(i int, w *kernel.Walk) {
		row := taskRow{}
		r.task(w, threads[i], &row)
		row.index = row.TID
		r.try(w, &row, "ns_pids", func() { row.NSPIDs = r.numbers(w, w.Ptr(threads[i], r.l.ThreadPID)) })
		more[i] = row
	}, func(i int) { more[i].Moved = true })
	return more, err
}
