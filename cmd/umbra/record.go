package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/replay"
	"github.com/umbravm/umbra/table"
)

func recordCommand(a *app) *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use:   "record TARGET FILE -- COMMAND [FLAGS] [-- COMMAND …]",
		Short: "Keep the memory that an answer was computed from",
		Long: `record runs commands on a machine and writes every page of memory they read to
FILE, with when and how they were read. The same commands then give the same answer
with FILE as their target, anywhere: evidence, or a test's input. Commands stand
behind -- and without a target.`,
		Example: `  umbra record web1 web1.umbra -- ps
  umbra record web1 web1.umbra -- ps --threads -- sockets -- modules
  umbra sockets web1.umbra`,
		GroupID: groupMemory,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return completeTarget(cmd, args, part)
		},
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 2 || len(args) < 3 {
				return usagef(cmd, "record needs TARGET FILE -- COMMAND")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&replace, "force", false, "replace FILE if it exists")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		commands := splitCommands(args[2:])
		for _, c := range commands {
			sub, _, err := cmd.Root().Find(c[:1])
			if err != nil || sub.GroupID != groupObjects && sub.GroupID != groupMemory && sub.Name() != "info" ||
				slices.Contains([]string{"record", "dump"}, sub.Name()) {
				return usagef(cmd, "%q is no command that can be recorded", c[0])
			}
		}
		if _, err := os.Lstat(args[1]); err == nil && !replace {
			return &hintError{&fs.PathError{Op: "record", Path: args[1], Err: fs.ErrExist}, "--force replaces it"}
		}
		return a.record(cmd, args[0], args[1], commands)
	}
	return cmd
}

// splitCommands takes apart what stands behind the first --.
func splitCommands(args []string) (commands [][]string) {
	for _, part := range split(args, "--") {
		if len(part) > 0 {
			commands = append(commands, part)
		}
	}
	return commands
}

func split(args []string, at string) (parts [][]string) {
	for {
		i := slices.Index(args, at)
		if i < 0 {
			return append(parts, args)
		}
		parts, args = append(parts, args[:i]), args[i+1:]
	}
}

// record runs the commands through one recorder and writes what it kept. Commands
// that end with findings are recorded like any other.
func (a *app) record(cmd *cobra.Command, target, path string, commands [][]string) error {
	src, err := a.open(cmd, target)
	if err != nil {
		return err
	}
	defer src.Close()
	rec := replay.Record(src, slices.Concat(commands...))
	found := false
	for _, c := range commands {
		sub := &app{stdout: a.stdout, stderr: a.stderr, stdoutTTY: a.stdoutTTY, stderrTTY: a.stderrTTY, using: rec}
		root := sub.root()
		root.SetArgs(slices.Concat(c[:1], []string{target}, c[1:]))
		sub.attachFlags, sub.stats = a.attachFlags, a.stats
		err := root.ExecuteContext(cmd.Context())
		if errors.Is(err, errFindings) {
			found = true
		} else if err != nil {
			return err
		}
	}
	bundle, err := rec.Bundle()
	if err != nil {
		return err
	}
	size, err := writeBundle(path, bundle)
	if err != nil {
		return err
	}
	a.notef("umbra: %s written: %d pages, %s", table.Safe(path), len(bundle.Pages), table.Size(float64(size)))
	if found {
		return errFindings
	}
	return nil
}

// writeBundle writes a bundle so that its name appears only when it is complete.
func writeBundle(path string, b *mem.Bundle) (size int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return 0, err
	}
	err = b.Encode(f)
	if err == nil {
		err = f.Sync()
	}
	if fi, statErr := f.Stat(); statErr == nil {
		size = fi.Size()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return 0, errors.Join(err, os.Remove(f.Name()))
	}
	return size, nil
}

// borrowed is a source that somebody else closes.
type borrowed struct{ *replay.Recorder }

func (borrowed) Close() error { return nil }

var _ source.RegisterReader = borrowed{}
