package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/umbravm/umbra/source/replay"
)

// app is one run of the program: its flags and where it prints.
type app struct {
	stdout, stderr       io.Writer
	stdoutTTY, stderrTTY bool
	attachFlags          attachFlags
	stats                bool

	// using, when set, is the source that commands use instead of opening one.
	using *replay.Recorder

	// reading, when set, is the recording that the command reads.
	reading *recording
}

// Command groups, as help lists them.
const (
	groupMachine = "machine"
	groupObjects = "objects"
	groupMemory  = "memory"
)

const rootLong = `Umbra looks into a Linux virtual machine from outside. It reads the machine's
memory on the host, finds the kernel in it, and shows what that kernel knows:
processes, sockets, files. Nothing is installed in the machine, and nothing has
to be prepared for its kernel.

A TARGET is a machine's name as "umbra vms" lists it, or says how to reach it:

  qemu:NAME  qemu:PID  qemu:SOCKET   a running QEMU machine, by name, process
                                     or QMP socket
  dump:FILE    FILE                  a memory dump: ELF core, kdump, LiME, raw
  replay:FILE  FILE                  what "umbra record" wrote`

// root returns the whole command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "umbra",
		Short: "See what runs in a virtual machine, from outside",
		Long:  rootLong,
		Example: `  umbra vms                       the machines on this host
  umbra ps web1                   what runs in web1
  umbra sockets web1 -o json      its sockets, for programs`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },

		SuggestionsMinimumDistance: 2,
	}
	root.SetVersionTemplate("umbra {{.Version}}\n")
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	a.attachFlags.register(root.PersistentFlags())
	root.PersistentFlags().BoolVarP(&a.stats, "stats", "v", false,
		"say on standard error how the answer was obtained: when, from how many pages, what moved")
	root.AddGroup(
		&cobra.Group{ID: groupMachine, Title: "Machines:"},
		&cobra.Group{ID: groupObjects, Title: "What a machine's kernel knows:"},
		&cobra.Group{ID: groupMemory, Title: "Its memory:"},
	)
	root.AddCommand(a.commands()...)
	root.AddCommand(manCommand())
	return root
}

// version is what the build knows of itself.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}

// knownCommand refuses what is no command, and names those that it may have meant.
func knownCommand(cmd *cobra.Command, args []string) error {
	err := cobra.NoArgs(cmd, args)
	if err == nil {
		return nil
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return &usageError{err, "did you mean " + strings.Join(near, " or ") + "? see umbra --help"}
	}
	return usagef(cmd, "%w", err)
}

// flagError says of a flag's value what is wrong with it in people's words.
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	var number *strconv.NumError
	if errors.As(err, &invalid) && errors.As(err, &number) {
		why := "not a number"
		if errors.Is(err, strconv.ErrRange) {
			why = "out of range"
		}
		return usagef(cmd, "invalid argument %q for --%s: %s", invalid.GetValue(), invalid.GetFlag().Name, why)
	}
	return usagef(cmd, "%w", err)
}

// usageArgs makes a wrong number of arguments wrong usage.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usagef(cmd, "%w", err)
		}
		return nil
	}
}

// targetArgs takes a TARGET and then least to most more arguments.
func targetArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return usagef(cmd, "%s: no TARGET named", cmd.Name())
		case len(args) < 1+least:
			return usagef(cmd, "%s: something is missing after TARGET", cmd.Name())
		case len(args) > 1+most:
			return usagef(cmd, "%s: %q is too much", cmd.Name(), strings.Join(args[1+most:], " "))
		}
		return nil
	}
}

// completeTarget offers the names of the machines on this host.
func completeTarget(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	// Not NoFileComp: a dump file is a target too.
	return machineNames(ctx), cobra.ShellCompDirectiveDefault
}

// width returns the terminal's columns, 0 when output goes elsewhere. COLUMNS
// overrides it, as it does for ps.
func (a *app) width() int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	f, ok := a.stdout.(*os.File)
	if !ok || !a.stdoutTTY {
		return 0
	}
	w, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return w
}

// color tells whether standard output may be coloured (https://no-color.org).
func (a *app) color() bool {
	return a.stdoutTTY && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// notef prints a line to standard error.
func (a *app) notef(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }
