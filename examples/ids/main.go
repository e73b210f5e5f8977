// Command ids is an intrusion detector's beginning: it prints a machine's kernel
// and processes, read from outside, and warns of what does not add up.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/umbravm/umbra"
	"github.com/umbravm/umbra/linux"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: ids TARGET")
	}
	ctx := context.Background()
	m, err := umbra.Attach(ctx, os.Args[1], umbra.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	view := m.View(ctx)
	tasks, err := linux.Tasks(view, linux.TaskOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.Kernel.Banner())
	for _, t := range tasks {
		fmt.Printf("%7d %5d %q\n", t.PID, t.UID, t.Comm)
	}
	for _, f := range view.Findings() {
		fmt.Println("warning:", f)
	}
}
