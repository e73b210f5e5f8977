package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/dump"
	"github.com/umbravm/umbra/table"
)

func dumpCommand(a *app) *cobra.Command {
	var format string
	var replace, pause bool
	cmd := &cobra.Command{
		Use:   "dump TARGET FILE",
		Short: "Write a machine's memory to a file",
		Long: `dump copies a machine's memory into a file that umbra and other tools read: an ELF
core, with the kernel's own note for dump tools in it; LiME; or raw memory.

The file appears under its name when it is complete and on the disk. Memory that
cannot be read is left out of it, never written as zeros. The machine runs on while
it is copied, so that parts of the file belong to different moments; --pause stops
it for that long.`,
		Example: "  umbra dump web1 web1.core\n  umbra dump web1 web1.lime --format lime --pause",
		GroupID: groupMemory,
		Args:    targetArgs(1, 1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return completeTarget(cmd, args, part)
		},
	}
	cmd.Flags().StringVar(&format, "format", "elf", "elf, lime or raw")
	cmd.Flags().BoolVar(&replace, "force", false, "replace FILE if it exists")
	cmd.Flags().BoolVar(&pause, "pause", false, "stop the machine while its memory is copied")
	must(cmd.RegisterFlagCompletionFunc("format",
		cobra.FixedCompletions([]string{"elf", "lime", "raw"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f := dump.Format(format)
		if f != dump.ELF && f != dump.LiME && f != dump.Raw {
			return usagef(cmd, "format %q: one of elf, lime, raw", format)
		}
		if err := newFile(args[1], replace); err != nil {
			return err
		}
		src, err := a.open(cmd, args[0])
		if err != nil {
			return err
		}
		if a.reading != nil {
			return errors.Join(fmt.Errorf("dump %s: a recording holds only the pages that an answer needed, not the machine's memory", args[0]), src.Close())
		}
		opts := dump.WriteOptions{Replace: replace}
		if f == dump.ELF {
			err = a.describeKernel(cmd, src, &opts)
		}
		var report dump.Report
		if err == nil {
			err = a.whileStopped(cmd.Context(), src, pause, func() (err error) {
				report, err = a.writeDump(cmd.Context(), args[1], src, f, opts)
				return err
			})
		}
		if errors.Is(err, fs.ErrExist) {
			err = &hintError{err, "--force replaces it"} // it appeared meanwhile
		}
		if err = errors.Join(err, src.Close()); err != nil {
			return err
		}
		return a.reportDump(args[1], f, report)
	}
	return cmd
}

// describeKernel adds what other tools find the kernel by. Memory is worth keeping
// without it too.
func (a *app) describeKernel(cmd *cobra.Command, src source.Source, opts *dump.WriteOptions) error {
	flags, err := a.attachFlags.options(cmd)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	done := a.status("looking for the kernel")
	k, err := kernel.Attach(ctx, src, flags.Kernel)
	done()
	if err == nil {
		if opts.VMCoreInfo, err = k.View(ctx, mem.Options{}).VMCoreInfo(); err == nil {
			for _, r := range k.Image() {
				opts.KernelMap = append(opts.KernelMap, dump.Mapping{Virt: r.Virt, Phys: r.Phys, Size: r.Size})
			}
		}
	}
	if err != nil && ctx.Err() == nil {
		a.notef("umbra: the dump will not say where the kernel is: %s", lines(err))
	}
	return ctx.Err()
}

// newFile refuses a path that cannot become a file, before anything is read.
func newFile(path string, replace bool) error {
	if path == "" {
		return errors.New("no FILE named")
	}
	fi, err := os.Stat(path)
	switch {
	case err == nil && fi.IsDir():
		return fmt.Errorf("write %s: it is a directory", path)
	case err == nil && !fi.Mode().IsRegular():
		return fmt.Errorf("write %s: it is no file that could be replaced", path)
	}
	if _, err := os.Lstat(path); err == nil && !replace {
		return &hintError{fmt.Errorf("write %s: %w", path, fs.ErrExist), "--force replaces it"}
	}
	return nil
}

// whileStopped runs run; with pause the machine stands still for that long.
func (a *app) whileStopped(ctx context.Context, src source.Source, pause bool, run func() error) (err error) {
	if !pause {
		return run()
	}
	p, ok := src.(source.Pauser)
	if !ok {
		return fmt.Errorf("%s cannot be paused: it does not run", src.Info().Name)
	}
	resume, err := p.Pause(ctx)
	if err != nil {
		return err
	}
	defer func() {
		stood, resumeErr := resume()
		err = errors.Join(err, resumeErr)
		if resumeErr == nil {
			a.notef("umbra: the machine stood still for %v", stood.Round(time.Millisecond))
		}
	}()
	return run()
}

// writeDump copies the memory, with a progress bar on a terminal.
func (a *app) writeDump(ctx context.Context, path string, src source.Source, f dump.Format, opts dump.WriteOptions) (report dump.Report, err error) {
	var w io.Writer = io.Discard
	if a.stderrTTY {
		w = a.stderr
	}
	bar := progressbar.NewOptions64(int64(src.Info().Layout.Size()),
		progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(true), progressbar.OptionSetDescription("dump"),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	opts.Progress = func(done, _ uint64) { _ = bar.Set64(int64(done)) }
	report, err = dump.Write(ctx, path, src, f, opts)
	_ = bar.Finish()
	return report, err
}

// reportDump says what was written, and what was not.
func (a *app) reportDump(path string, f dump.Format, r dump.Report) error {
	var size uint64
	for _, e := range r.Layout {
		size += e.Size
	}
	a.notef("umbra: %s written: %s of memory, %s without the zeros", table.Safe(path), table.Size(float64(size)), table.Size(float64(r.Stored)))
	if f == dump.Raw {
		a.notef("umbra: a raw file does not say what it is: read it with --layout %s", dump.FormatLayout(r.Layout))
	}
	if r.Unreadable > 0 {
		a.notef("umbra: finding: memory: %d bytes could not be read and are not in the file: %v", r.Unreadable, r.Fault)
		return errFindings
	}
	return nil
}
