package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func mapsCommand(a *app) *cobra.Command {
	var opts linux.MapOptions
	return listCommand(a, listing[linux.Mapping]{
		name: "maps", group: groupObjects,
		short:   "List memory mappings",
		long:    `maps lists the areas of processes' address spaces, as their /proc/PID/maps would.`,
		example: "  umbra maps web1 --pid 412\n  umbra maps web1 -o json",
		table: table.Options{
			Default: []string{"pid", "comm", "start", "end", "perms", "offset", "device", "inode", "path"},
			Wide:    []string{"path"},
			Middle:  []string{"path"},
			Cells: map[string]func(any) string{
				"offset": func(row any) string {
					if o := row.(*linux.Mapping).Offset; o != nil {
						return fmt.Sprintf("%08x", *o)
					}
					return "-"
				},
			},
		},
		pid: &opts.PID, pidUsage: "only this process",
		read: func(v *kernel.View) ([]linux.Mapping, error) { return linux.Maps(v, opts) },
	})
}
