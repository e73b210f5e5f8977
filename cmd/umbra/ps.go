package main

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func psCommand(a *app) *cobra.Command {
	var opts linux.TaskOptions
	var tree bool
	return listCommand(a, listing[linux.Task]{
		name: "ps", group: groupObjects,
		short: "List processes",
		long: `ps lists the processes of a machine as the machine's own /proc would.

Processes come from the kernel's PID tables. Its task list, which is kept apart
from them, is the cross-check: a process that only one of them has is a finding.
In a table [NAME] is a process without arguments, most often a kernel thread.`,
		example: `  umbra ps web1
  umbra ps web1 --tree
  umbra ps web1 --sort -rss --columns pid,comm,rss,exe
  umbra ps web1 --threads --pid 412 -o json`,
		table: table.Options{
			Default: []string{"pid", "ppid", "uid", "state", "threads", "start_time", "cpu_seconds", "rss_bytes", "args"},
			Wide:    []string{"args", "exe", "cwd"},
			Middle:  []string{"exe", "cwd"},
			Cells: map[string]func(any) string{
				"args":       func(row any) string { return command(row.(*linux.Task)) },
				"start_time": func(row any) string { return shortTime(row.(*linux.Task).StartTime) },
			},
		},
		pid: &opts.PID, pidUsage: "only this process",
		check: func(o *table.Options) error {
			if tree && (o.Format != table.Text || len(o.Columns) > 0 || o.Sort != "") {
				return errors.New("--tree has a form of its own: it goes with neither --output, --columns nor --sort")
			}
			if opts.Threads {
				o.Default = slices.Insert(slices.Clone(o.Default), 1, "tid")
			}
			return nil
		},
		flags: func(cmd *cobra.Command) {
			cmd.Flags().BoolVar(&opts.Threads, "threads", false, "list threads too, one row each")
			cmd.Flags().BoolVar(&tree, "tree", false, "show who started whom; for people")
			cmd.Flags().BoolVar(&opts.Brief, "brief", false, "leave out arguments, paths, sizes, threads and CPU time: fewer pages are read")
		},
		read: func(v *kernel.View) ([]linux.Task, error) { return linux.Tasks(v, opts) },
		show: func(a *app, rows []linux.Task, o table.Options) (bool, error) {
			if tree {
				return true, writeTree(a.stdout, rows, o.Width)
			}
			return false, nil
		},
	})
}

// command is a task's arguments, or [its name] when it has none.
func command(t *linux.Task) string {
	switch {
	case t.TID != t.PID:
		return "{" + t.Comm + "}"
	}
	if s := strings.Join(t.Args, " "); s != "" {
		return s
	}
	return "[" + t.Comm + "]"
}

// shortTime renders when a process began, in UTC; most often it was this year.
func shortTime(t *time.Time) string {
	if t == nil {
		return "-"
	}
	layout := "01-02 15:04:05Z"
	if t.UTC().Year() != time.Now().UTC().Year() {
		layout = time.DateTime + "Z"
	}
	return t.UTC().Format(layout)
}
