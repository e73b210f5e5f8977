package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/table"
)

func printCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "print TARGET EXPRESSION",
		Short: "Print a kernel object by a C expression",
		Long: `print evaluates an expression as C writes it over the objects of the machine's
kernel and prints what it stands for:

  members         init_task.comm   init_task.mm->pgd      . and -> both follow pointers
  elements        init_task.cpus_mask.bits[0]
  what is behind  *init_task.signal
  addresses       &init_task.tasks
  casts           (struct file *)0xffff888003a81200   *(unsigned long *)&max_pfn
  each CPU's own  per_cpu(runqueues, 0).nr_running
  sums            (struct task_struct *)(0xffff888003a81200 - 0x8f8)

A kernel's BTF tells the types of per-CPU variables only. Umbra knows those of
well-known globals such as init_task and init_net besides; the address of any other
symbol can be taken and cast.`,
		Example: `  umbra print web1 init_task.comm
  umbra print web1 '*init_task.nsproxy->uts_ns'
  umbra print web1 'per_cpu(runqueues, 0).curr->comm' -o json`,
		GroupID:           groupMemory,
		Args:              targetArgs(1, 1),
		ValidArgsFunction: completeTarget,
	}
	cmd.Flags().StringVarP(&format, "output", "o", "table", "table (text as a debugger prints it) or json")
	must(cmd.RegisterFlagCompletionFunc("output",
		cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if format != string(table.Text) && format != string(table.JSON) {
			return usagef(cmd, "output format %q: one of table, json", format)
		}
		return a.withView(cmd, args[0], func(_ *umbra.Machine, v *kernel.View) error {
			value, err := v.Eval(args[1])
			if err != nil {
				return err
			}
			if format == string(table.JSON) {
				out, err := table.JSONValue(value)
				if err != nil {
					return err
				}
				_, err = a.stdout.Write(out)
				return err
			}
			return a.printLines(fmt.Sprintf("%s = %s\n", args[1], value), nil)
		})
	}
	return cmd
}
