package main

import (
	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func cgroupsCommand(a *app) *cobra.Command {
	return listCommand(a, listing[linux.Cgroup]{
		name: "cgroups", group: groupObjects,
		short:   "List control groups",
		long:    `cgroups lists the control groups of all hierarchies, v2 and v1, by path.`,
		example: "  umbra cgroups web1\n  umbra cgroups web1 -o json",
		table: table.Options{
			Default: []string{"hierarchy", "id", "processes", "populated", "frozen", "controllers", "path"},
			Wide:    []string{"path", "controllers"},
		},
		read: linux.Cgroups,
	})
}
