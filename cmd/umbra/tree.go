package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"

	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

// maxTreeDepth bounds the indentation: a machine can have chains of any length.
const maxTreeDepth = 64

// writeTree prints processes below those that started them. A process whose parent
// is not among tasks, or whose ancestors form a circle, stands at the margin.
func writeTree(w io.Writer, tasks []linux.Task, width int) error {
	t := tree{out: bufio.NewWriter(w), width: width, tasks: tasks, children: make(map[int][]int), done: make([]bool, len(tasks))}
	leaders := make(map[int]bool)
	for _, task := range tasks {
		leaders[task.TID] = true
	}
	var roots []int
	for i, task := range tasks {
		parent := task.PPID
		if task.TID != task.PID {
			parent = task.PID // a thread stands below its process
		}
		if parent == task.TID || !leaders[parent] {
			roots = append(roots, i)
			continue
		}
		t.children[parent] = append(t.children[parent], i)
	}
	for _, i := range roots {
		t.print(i, "", "", 0)
	}
	for i := range tasks {
		t.print(i, "", "", 0) // circles: whatever no root leads to
	}
	doubtful := 0
	for i := range tasks {
		if marked(&tasks[i]) {
			doubtful++
		}
	}
	if doubtful > 0 {
		fmt.Fprintf(t.out, "! %d of %d kept changing while they were read, or could not be read in full: see moved and errors in -o json\n",
			doubtful, len(tasks))
	}
	return t.out.Flush()
}

// marked tells whether a task was not read in full.
func marked(t *linux.Task) bool { return t.Moved || len(t.Errors) > 0 }

type tree struct {
	out      *bufio.Writer
	width    int
	tasks    []linux.Task
	children map[int][]int
	done     []bool
}

// print prints task i behind first and its descendants behind rest.
func (t *tree) print(i int, first, rest string, depth int) {
	if t.done[i] {
		return
	}
	t.done[i] = true
	task := t.tasks[i]
	line, mark := fmt.Sprintf("%7d  %s%s", task.TID, first, table.Safe(command(&task))), ""
	if marked(&task) {
		mark = "  !"
	}
	// The mark is not cut off.
	t.out.WriteString(table.Cut(line, max(0, t.width-len(mark))) + mark)
	t.out.WriteByte('\n')
	kids := slices.DeleteFunc(slices.Clone(t.children[task.TID]), func(k int) bool { return t.done[k] })
	if depth < maxTreeDepth {
		depth++
		for n, k := range kids {
			if n == len(kids)-1 {
				t.print(k, rest+"└─ ", rest+"   ", depth)
			} else {
				t.print(k, rest+"├─ ", rest+"│  ", depth)
			}
		}
		return
	}
	for _, k := range kids {
		t.print(k, rest, rest, depth)
	}
}
