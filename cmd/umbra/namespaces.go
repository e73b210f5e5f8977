package main

import (
	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func namespacesCommand(a *app) *cobra.Command {
	return listCommand(a, listing[linux.Namespace]{
		name: "namespaces", group: groupObjects,
		short: "List namespaces",
		long: `namespaces lists the machine's namespaces by kind and inode number, as the links
under /proc/PID/ns name them, with how many processes are in each.`,
		example: "  umbra namespaces web1\n  umbra namespaces web1 --sort -processes",
		table: table.Options{
			Default: []string{"type", "inode", "processes", "pid", "comm", "user_namespace", "owner_uid", "parent"},
		},
		read: linux.Namespaces,
	})
}
