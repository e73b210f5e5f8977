package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func modulesCommand(a *app) *cobra.Command {
	return listCommand(a, listing[linux.Module]{
		name: "modules", group: groupObjects,
		short: "List loaded kernel modules",
		long: `modules lists the kernel's loaded modules as the machine's /proc/modules would.
A module that other tables of the kernel know and its list does not is a finding.`,
		example: "  umbra modules web1\n  umbra modules web1 --sort -size",
		table: table.Options{
			Default: []string{"name", "size", "refcount", "used_by", "state", "address", "taints"},
			Cells: map[string]func(any) string{
				"used_by": func(row any) string { return orDash(strings.Join(row.(*linux.Module).UsedBy, ",")) },
			},
		},
		read: linux.Modules,
	})
}

// orDash shows what is empty as people are shown it.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
