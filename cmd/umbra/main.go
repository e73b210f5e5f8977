package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source/qemu"
)

func main() {
	ctx := context.Background()
	src, err := qemu.Open(ctx, os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("%+v\n", src.Info())
	t := time.Now()
	cache, _ := kernel.OpenCache("")
	k, err := kernel.Attach(ctx, src, kernel.Options{Cache: cache})
	fmt.Println(time.Since(t), err)
	if err != nil {
		os.Exit(1)
	}
	fmt.Printf("%s %+v\n", k.Banner(), k.Attached())
	for i := 0; i < 3; i++ {
		t = time.Now()
		v := k.View(ctx, mem.Options{Batch: i == 1})
		ts, err := linux.Tasks(v, linux.TaskOptions{})
		fmt.Println(time.Since(t), err, len(ts), v.Snapshot().Stats())
		for _, f := range v.Findings() {
			fmt.Println(f)
		}
		if i == 2 {
			for _, t := range ts {
				x := func(s *string) string {
					if s == nil {
						return "-"
					}
					return *s
				}
				fmt.Println(t.PID, t.PPID, t.UID, t.State, t.Nice, t.Threads, t.StartTime, t.CPUSeconds, t.Comm, x(t.Exe), x(t.Cwd), t.NSPIDs, t.Args, t.Errors, t.Moved)
			}
		}
	}
	k.Save()
}
