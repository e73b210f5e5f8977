package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func infoCommand(a *app) *cobra.Command {
	var out outputFlags
	keys, err := table.Keys[linux.Info]()
	must(err)
	cmd := &cobra.Command{
		Use:   "info TARGET",
		Short: "Tell what a machine is and how its kernel was found",
		Long: `info tells which kernel runs in a machine, when it booted, and how it was found:
by the CPUs' registers, by the note the kernel keeps for dump tools, or by looking
for page tables through all of RAM.

Everything is the machine's own word. The hashes are those of its type and symbol
tables as they lay in memory: two machines with the same kernel package have the
same ones, and one whose tables were tampered with does not.`,
		Example:           "  umbra info web1\n  umbra info web1 -o json",
		GroupID:           groupMachine,
		Args:              targetArgs(0, 0),
		ValidArgsFunction: completeTarget,
	}
	out.register(cmd, keys)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opts := out.apply(a, table.Options{
			Default: []string{"name", "source", "hostname", "release", "banner", "build_id", "arch", "boot_id", "boot_time",
				"uptime_seconds", "cpus", "memory_bytes", "kaslr_offset", "attach", "btf_sha256", "kallsyms_sha256"},
			Cells: map[string]func(any) string{
				"kaslr_offset": func(row any) string {
					if o := row.(*linux.Info).KASLR; o != nil {
						return fmt.Sprintf("%#x", *o)
					}
					return "-"
				},
				"attach": func(row any) string {
					at := row.(*linux.Info).Attach
					return fmt.Sprintf("by %s in %.1f ms, %d pages read", at.Method, at.Milliseconds, at.PagesRead)
				},
			},
		})
		if err := table.Check[linux.Info](opts); err != nil {
			return usagef(cmd, "%w", err)
		}
		return a.withView(cmd, args[0], func(_ *umbra.Machine, v *kernel.View) error {
			info, err := linux.ReadInfo(v)
			if err != nil {
				return err
			}
			changed, err := v.Tampered()
			if err != nil {
				return err
			}
			for _, f := range changed {
				v.Find(f.Object, "%s", f.What)
			}
			return table.WriteObject(a.stdout, info, opts)
		})
	}
	return cmd
}
