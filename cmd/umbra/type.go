package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra"
	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/table"
)

func typeCommand(a *app) *cobra.Command {
	var out outputFlags
	keys, err := table.Keys[btf.Entry]()
	must(err)
	cmd := &cobra.Command{
		Use:   "type TARGET NAME",
		Short: "Show how a kernel type is laid out",
		Long: `type prints a struct, union, enum or typedef of the machine's kernel as C declares
it, each member with its offset and size in bytes. The types are the kernel's own
BTF, read out of its memory. With -o json or csv, or --columns, members are rows.`,
		Example: `  umbra type web1 task_struct
  umbra type web1 'enum pid_type'
  umbra type web1 list_head -o json`,
		GroupID:           groupMemory,
		Args:              targetArgs(1, 1),
		ValidArgsFunction: completeTarget,
	}
	out.register(cmd, keys)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opts := out.apply(a, table.Options{})
		if err := table.Check[btf.Entry](opts); err != nil {
			return usagef(cmd, "%w", err)
		}
		return a.withView(cmd, args[0], func(_ *umbra.Machine, v *kernel.View) error {
			types, err := v.Types()
			if err != nil {
				return err
			}
			if opts.Format == table.Text && len(opts.Columns) == 0 && opts.Sort == "" {
				var text bytes.Buffer
				err := types.Print(&text, args[1])
				return a.printLines(text.String(), err)
			}
			rows, err := types.Entries(args[1])
			if err != nil {
				return err
			}
			return table.Write(a.stdout, rows, opts)
		})
	}
	return cmd
}

// printLines prints text that a guest had a hand in, unless err says why there is
// none.
func (a *app) printLines(text string, err error) error {
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		if _, err := fmt.Fprintln(a.stdout, table.Safe(strings.TrimSuffix(line, "\n"))); err != nil {
			return err
		}
	}
	return nil
}
