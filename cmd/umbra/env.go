package main

import (
	"bufio"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func envCommand(a *app) *cobra.Command {
	var pid int
	return listCommand(a, listing[linux.Environment]{
		name: "env", group: groupObjects,
		short: "Print processes' environments",
		long: `env prints the environment that processes were started with, as the machine's
/proc/PID/environ holds it. A program may have changed its own since.`,
		example: "  umbra env web1 --pid 412\n  umbra env web1 -o json",
		table:   table.Options{Default: []string{"pid", "comm", "env"}, Wide: []string{"env"}},
		pid:     &pid, pidUsage: "only this process",
		read: func(v *kernel.View) ([]linux.Environment, error) { return linux.Env(v, pid) },
		show: func(a *app, rows []linux.Environment, opts table.Options) (bool, error) {
			if pid == 0 || len(rows) != 1 || rows[0].Env == nil || len(opts.Columns) > 0 {
				return false, nil
			}
			out := bufio.NewWriter(a.stdout)
			for _, line := range rows[0].Env {
				fmt.Fprintln(out, table.Safe(line))
			}
			return true, out.Flush()
		},
	})
}
