package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

// outputFlags choose how rows are printed.
type outputFlags struct {
	format  string
	columns []string
	sort    string
}

// register adds the flags to a command whose rows have these keys.
func (f *outputFlags) register(cmd *cobra.Command, keys []string) {
	fs := cmd.Flags()
	fs.StringVarP(&f.format, "output", "o", "table", "table, json or csv")
	fs.StringSliceVar(&f.columns, "columns", nil, "what to print, separated by commas: "+strings.Join(keys, ","))
	fs.StringVar(&f.sort, "sort", "", "column to sort by; -COLUMN from the largest down")
	must(cmd.RegisterFlagCompletionFunc("output",
		cobra.FixedCompletions([]string{"table", "json", "csv"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("columns",
		cobra.FixedCompletions(keys, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("sort",
		cobra.FixedCompletions(keys, cobra.ShellCompDirectiveNoFileComp)))
}

// must is for calls that fail only when the program itself is wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// apply completes what a command says of its table by what the flags say.
func (f *outputFlags) apply(a *app, opts table.Options) table.Options {
	opts.Format, opts.Columns, opts.Sort = table.Format(f.format), f.columns, f.sort
	opts.Width, opts.Color = a.width(), a.color()
	return opts
}

// listing is a command that prints one kind of kernel object as rows.
type listing[T any] struct {
	name, short, long, example string

	group string
	table table.Options
	flags func(cmd *cobra.Command)
	read  func(v *kernel.View) ([]T, error)

	// pid, when set, is where --pid, described by pidUsage, is put.
	pid      *int
	pidUsage string

	// check refuses flags that do not go together and may adjust the table to them.
	check func(opts *table.Options) error

	// show prints rows in another way than as a table; nil, or false, is the table.
	show func(a *app, rows []T, opts table.Options) (bool, error)
}

// listCommand makes a command of a listing.
func listCommand[T any](a *app, l listing[T]) *cobra.Command {
	var out outputFlags
	keys, err := table.Keys[T]()
	must(err)
	cmd := &cobra.Command{
		Use:               l.name + " TARGET",
		Short:             l.short,
		Long:              l.long,
		Example:           l.example,
		GroupID:           l.group,
		Args:              targetArgs(0, 0),
		ValidArgsFunction: completeTarget,
	}
	if l.flags != nil {
		l.flags(cmd)
	}
	if l.pid != nil {
		cmd.Flags().IntVar(l.pid, "pid", 0, l.pidUsage)
	}
	out.register(cmd, keys)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opts := out.apply(a, l.table)
		if err := l.checkFlags(cmd, &opts); err != nil {
			return usagef(cmd, "%w", err)
		}
		return a.withView(cmd, args[0], func(_ *umbra.Machine, v *kernel.View) error {
			rows, err := l.read(v)
			if err == nil && len(rows) == 0 {
				err = errors.Join(l.processExists(v), a.reading.err())
			}
			if err != nil {
				return err
			}
			if l.show != nil && opts.Format == table.Text {
				if shown, err := l.show(a, rows, opts); shown || err != nil {
					return err
				}
			}
			return table.Write(a.stdout, rows, opts)
		})
	}
	return cmd
}

// checkFlags finds mistakes before a machine is read.
func (l *listing[T]) checkFlags(cmd *cobra.Command, opts *table.Options) error {
	if l.pid != nil && *l.pid < 1 && cmd.Flags().Changed("pid") {
		return fmt.Errorf("--pid %d: process ids begin at 1", *l.pid)
	}
	if l.check != nil {
		if err := l.check(opts); err != nil {
			return err
		}
	}
	return table.Check[T](*opts)
}

// processExists tells a process of which there is nothing to list from one that
// does not exist.
func (l *listing[T]) processExists(v *kernel.View) error {
	if l.pid == nil || *l.pid == 0 {
		return nil
	}
	tasks, err := linux.Tasks(v, linux.TaskOptions{PID: *l.pid, Brief: true})
	if err == nil && len(tasks) == 0 {
		err = fmt.Errorf("process %d: %w", *l.pid, linux.ErrNoProcess)
	}
	return err
}
