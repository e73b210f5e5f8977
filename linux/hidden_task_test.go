package linux

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// rewritten is a running machine in whose memory an intruder has changed words.
type rewritten struct {
	source.Source
	words map[mem.Phys]uint64 // by address, which is aligned
}

func (r *rewritten) ReadPhys(ctx context.Context, reads []mem.Read) error {
	if err := r.Source.ReadPhys(ctx, reads); err != nil {
		return err
	}
	for _, rd := range reads {
		for a, x := range r.words {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], x)
			for i := range b {
				if at := int64(a) + int64(i) - int64(rd.Addr); at >= 0 && at < int64(rd.N) {
					rd.Buf[at] = b[i]
				}
			}
		}
	}
	return nil
}

// hideTasks takes a process out of the list of tasks, and another out of the PID IDR,
// as a rootkit does, and has them found though the machine is busy.
func hideTasks(ctx context.Context, t *testing.T, k *kernel.Kernel) {
	v := view(t, k, mem.Options{})
	tasks, err := Tasks(v, TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var idle []Task
	for _, task := range tasks {
		if len(task.Args) > 0 && strings.HasPrefix(task.Args[0], "idle-") {
			idle = append(idle, task)
		}
	}
	if len(idle) < 30 {
		t.Fatalf("only %d processes stand still", len(idle))
	}
	unlisted, unnumbered := &idle[10], &idle[20]
	src := &rewritten{k.Source(), map[mem.Phys]uint64{}}
	put := func(a mem.Virt, x mem.Virt) {
		p, err := v.Space().Translate(a)
		if err != nil {
			t.Fatal(err)
		}
		src.words[p] = uint64(x)
	}
	l, err := kernel.Layout[taskLayout](k)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := kernel.Layout[namespaceLayout](k)
	if err != nil {
		t.Fatal(err)
	}
	err = v.Do(func(w *kernel.Walk) {
		node := w.At(unlisted.Addr, l.Tasks)
		next, prev := w.Pointer(node), w.Pointer(node+8)
		pid := w.Ptr(unnumbered.Addr, ns.PID)
		if w.OK() {
			put(prev, next)
			put(next+8, prev)
			put(w.At(pid, l.PIDTasks)+pidTypePID*8, 0)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	hostile, err := kernel.Attach(ctx, src, kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{
		fmt.Sprintf("task %d: %q is in the PID IDR but not in the task list", unlisted.PID, unlisted.Comm):     true,
		fmt.Sprintf("task %d: %q is in the task list but not in the PID IDR", unnumbered.PID, unnumbered.Comm): true,
	}
	for i := range 10 {
		v := view(t, hostile, mem.Options{Batch: i%2 == 1})
		tasks, err := Tasks(v, TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		listed := map[int]bool{}
		for _, task := range tasks {
			listed[task.PID] = true
		}
		if !listed[unlisted.PID] || !listed[unnumbered.PID] {
			t.Errorf("look %d: hidden tasks listed: %v, %v", i, listed[unlisted.PID], listed[unnumbered.PID])
		}
		found := v.Findings()
		if len(found) != len(want) {
			t.Errorf("look %d: findings %v", i, found)
		}
		for _, f := range found {
			if !want[f.String()] {
				t.Errorf("look %d: finding %v", i, f)
			}
		}
	}
}
