package main

import (
	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func mountsCommand(a *app) *cobra.Command {
	var opts linux.MountOptions
	return listCommand(a, listing[linux.Mount]{
		name: "mounts", group: groupObjects,
		short: "List mounts",
		long: `mounts lists what is mounted in each mount namespace, as /proc/PID/mountinfo of the
namespace's first process would. Options that a file system's own code writes are
not known and left out: fs_options is null.`,
		example: "  umbra mounts web1\n  umbra mounts web1 --pid 412\n  umbra mounts web1 -o json",
		table: table.Options{
			Default: []string{"mount_namespace", "mount_id", "parent_id", "device", "fs_type", "source", "root", "mountpoint", "options"},
			Wide:    []string{"options", "mountpoint", "source"},
		},
		flags: func(cmd *cobra.Command) {
			cmd.Flags().IntVar(&opts.PID, "pid", 0, "only the mounts that this process sees")
		},
		read: func(v *kernel.View) ([]linux.Mount, error) { return linux.Mounts(v, opts) },
	})
}
