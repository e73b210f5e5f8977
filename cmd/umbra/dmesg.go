package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func dmesgCommand(a *app) *cobra.Command {
	return listCommand(a, listing[linux.LogRecord]{
		name: "dmesg", group: groupObjects,
		short: "Print the kernel's log",
		long: `dmesg prints what is left in the ring buffer of the machine's kernel. For people
it looks as the machine's own dmesg does; --columns and the other formats give rows.`,
		example: "  umbra dmesg web1\n  umbra dmesg web1 -o json --columns time,level,text",
		table:   table.Options{Wide: []string{"text"}},
		read:    linux.Dmesg,
		show: func(a *app, rows []linux.LogRecord, opts table.Options) (bool, error) {
			if len(opts.Columns) > 0 {
				return false, nil
			}
			out := bufio.NewWriter(a.stdout)
			for _, r := range rows {
				// Lines of a record after its first have its time too.
				for line := range strings.SplitSeq(r.Text, "\n") {
					fmt.Fprintf(out, "[%12.6f] %s\n", r.Seconds, table.Safe(line))
				}
			}
			return true, out.Flush()
		},
	})
}
