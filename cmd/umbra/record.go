package main

import (
	"errors"
	"fmt"
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
	var replace, pause bool
	cmd := &cobra.Command{
		Use:   "record TARGET FILE -- COMMAND [FLAGS] [-- COMMAND …]",
		Short: "Keep the memory that an answer was computed from",
		Long: `record runs commands on a machine and writes every page of memory they read to
FILE, with when and how they were read. The same commands then give the same answer
with FILE as their target, anywhere: evidence, or a test's input. Commands stand
behind -- and without a target. With --pause the machine stands still while they
run, so that all pages belong to one moment.`,
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
	cmd.Flags().BoolVar(&pause, "pause", false, "stop the machine while the commands run")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		commands := splitCommands(args[2:])
		if len(commands) == 0 {
			return usagef(cmd, "record needs TARGET FILE -- COMMAND")
		}
		for _, c := range commands {
			sub, _, err := cmd.Root().Find(c[:1])
			if err != nil || sub.GroupID != groupObjects && sub.GroupID != groupMemory && sub.Name() != "info" ||
				slices.Contains([]string{"record", "dump"}, sub.Name()) {
				return usagef(cmd, "%q is no command that can be recorded", c[0])
			}
		}
		if err := newFile(args[1], replace); err != nil {
			return err
		}
		return a.record(cmd, args[0], args[1], commands, pause)
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
// that end with findings are recorded like any other. The file is made first: where
// it cannot be, nothing is read.
func (a *app) record(cmd *cobra.Command, target, path string, commands [][]string, pause bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.partial")
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	defer func() {
		if err != nil && !errors.Is(err, errFindings) {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	src, err := a.open(cmd, target)
	if err != nil {
		return err
	}
	defer src.Close()
	rec := replay.Record(src, joined(commands))
	found := false
	if err := a.whileStopped(cmd.Context(), src, pause, func() (err error) {
		found, err = a.runRecorded(cmd, target, rec, commands)
		return err
	}); err != nil {
		return err
	}
	bundle, err := rec.Bundle()
	if err != nil {
		return err
	}
	size, err := writeBundle(f, path, bundle)
	if err != nil {
		return err
	}
	a.notef("umbra: %s written: %d pages, %s", table.Safe(path), len(bundle.Pages), table.Size(float64(size)))
	if found {
		return errFindings
	}
	return nil
}

// joined is what splitCommands took apart.
func joined(commands [][]string) (args []string) {
	for i, c := range commands {
		if i > 0 {
			args = append(args, "--")
		}
		args = append(args, c...)
	}
	return args
}

// runRecorded runs the commands and tells whether one of them ended with findings.
func (a *app) runRecorded(cmd *cobra.Command, target string, rec *replay.Recorder, commands [][]string) (found bool, err error) {
	for _, c := range commands {
		sub := &app{stdout: a.stdout, stderr: a.stderr, stdoutTTY: a.stdoutTTY, stderrTTY: a.stderrTTY, using: rec, reading: a.reading}
		root := sub.root()
		root.SetArgs(slices.Concat(c[:1], []string{target}, c[1:]))
		sub.attachFlags, sub.stats = a.attachFlags, a.stats
		err := root.ExecuteContext(cmd.Context())
		if errors.Is(err, errFindings) {
			found = true
		} else if err != nil {
			return found, err
		}
	}
	return found, nil
}

// writeBundle completes f, which appears under its name path only then.
func writeBundle(f *os.File, path string, b *mem.Bundle) (size int64, err error) {
	if err := b.Encode(f); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return 0, err
	}
	return fi.Size(), f.Close()
}

// borrowed is a source that somebody else closes.
type borrowed struct{ *replay.Recorder }

func (borrowed) Close() error { return nil }

var _ source.RegisterReader = borrowed{}
