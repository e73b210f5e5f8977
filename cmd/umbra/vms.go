package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/source/qemu"
	"github.com/umbravm/umbra/table"
)

func vmsCommand(a *app) *cobra.Command {
	var out outputFlags
	keys, err := table.Keys[qemu.Machine]()
	must(err)
	cmd := &cobra.Command{
		Use:   "vms",
		Short: "List the machines on this host",
		Long: `vms lists the QEMU machines that run on this host and how each can be watched.

RAM is the machine's size, MEMORY says where it can be read: from a file or memfd it shares,
or from the QEMU process itself. QMP says whether QEMU's monitor can be asked for
registers; without it the kernel is found all the same, more slowly. PROBLEM says
what stands in the way, such as a missing permission.`,
		Example: "  umbra vms\n  umbra vms -o json",
		GroupID: groupMachine,
		Args:    usageArgs(cobra.NoArgs),
	}
	out.register(cmd, keys)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		opts := out.apply(a, table.Options{
			Default: []string{"name", "pid", "memory_bytes", "cpus", "accel", "memory", "qmp", "problem"},
			Wide:    []string{"problem", "memory"},
			Cells: map[string]func(any) string{
				"cpus": func(row any) string { // 0 is a number nobody told
					if n := row.(*qemu.Machine).CPUs; n > 0 {
						return strconv.Itoa(n)
					}
					return "-"
				},
			},
			Heads: map[string]string{"memory_bytes": "ram"},
		})
		if err := table.Check[qemu.Machine](opts); err != nil {
			return usagef(cmd, "%w", err)
		}
		ms, err := qemu.List(cmd.Context())
		if err != nil {
			return err
		}
		if len(ms) == 0 && opts.Format == table.Text {
			a.notef("no QEMU process runs on this host")
			return nil
		}
		return table.Write(a.stdout, ms, opts)
	}
	return cmd
}

// machineNames returns what the machines on this host can be called by.
func machineNames(ctx context.Context) (names []string) {
	ms, err := qemu.List(ctx)
	if err != nil {
		return nil
	}
	count := make(map[string]int)
	for _, m := range ms {
		count[m.Name]++
	}
	for _, m := range ms {
		if m.Name == "" || count[m.Name] > 1 {
			names = append(names, strconv.Itoa(m.PID))
		} else {
			names = append(names, m.Name)
		}
	}
	return names
}
