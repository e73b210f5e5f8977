package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func filesCommand(a *app) *cobra.Command {
	var opts linux.FileOptions
	return listCommand(a, listing[linux.File]{
		name: "files", group: groupObjects,
		short: "List open files",
		long: `files lists every open descriptor of every process: files, pipes, sockets,
eventfds, memfds, files whose name is gone. PATH reads as the link in the machine's
/proc/PID/fd does, FLAGS as in /proc/PID/fdinfo (octal; a number in json and csv).`,
		example: "  umbra files web1\n  umbra files web1 --pid 412\n  umbra files web1 -o json --columns pid,path,deleted",
		table: table.Options{
			Default: []string{"pid", "comm", "fd", "type", "flags", "pos", "inode", "path"},
			Wide:    []string{"path"},
			Middle:  []string{"path"},
			Cells: map[string]func(any) string{
				"flags": func(row any) string {
					if f := row.(*linux.File).Flags; f != nil {
						return fmt.Sprintf("0%o", *f)
					}
					return "-"
				},
			},
		},
		pid: &opts.PID, pidUsage: "only this process",
		read: func(v *kernel.View) ([]linux.File, error) { return linux.Files(v, opts) },
	})
}
