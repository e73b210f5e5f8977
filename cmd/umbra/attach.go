package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/umbravm/umbra"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/all"
	"github.com/umbravm/umbra/source/dump"
	"github.com/umbravm/umbra/source/replay"
	"github.com/umbravm/umbra/table"
)

// attachFlags say how to reach a machine and what its kernel does not carry.
type attachFlags struct {
	supply  kernel.Supply
	noCache bool
	layout  string
}

func (f *attachFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.supply.Vmlinux, "vmlinux", "", "take types and symbols from the kernel's ELF file, not from the machine")
	fs.StringVar(&f.supply.BTF, "btf", "", "take types from a BTF file")
	fs.StringVar(&f.supply.SystemMap, "system-map", "", "take symbols from the kernel's System.map")
	fs.BoolVar(&f.noCache, "no-cache", false, "neither use nor keep what was decoded of kernels before")
	fs.StringVar(&f.layout, "layout", "", "where a raw dump's memory belongs, such as 0-0x80000000,0x100000000-0x180000000")
}

// options returns what the flags say to umbra.Attach.
func (f *attachFlags) options(cmd *cobra.Command) (umbra.Options, error) {
	opts := umbra.Options{NoCache: f.noCache}
	if f.layout != "" {
		layout, err := dump.ParseLayout(f.layout)
		if err != nil {
			return opts, usagef(cmd, "%w", err)
		}
		opts.Source.Dump.Layout = layout
	}
	return opts, f.supply.Fill(&opts.Kernel)
}

// open opens a machine's memory without looking for a kernel in it.
func (a *app) open(cmd *cobra.Command, target string) (source.Source, error) {
	opts, err := a.attachFlags.options(cmd)
	if err != nil {
		return nil, err
	}
	return a.openWith(cmd, target, opts)
}

func (a *app) openWith(cmd *cobra.Command, target string, opts umbra.Options) (source.Source, error) {
	if a.using != nil {
		return borrowed{a.using}, nil
	}
	src, err := all.Open(cmd.Context(), target, opts.Source)
	if recorded, ok := src.(*replay.Source); ok && err == nil {
		a.reading = &recording{Source: recorded, missed: make(map[mem.Phys]bool)}
		return a.reading, nil
	}
	return src, err
}

// attach finds the kernel that runs in the machine target names.
func (a *app) attach(cmd *cobra.Command, target string) (*umbra.Machine, error) {
	opts, err := a.attachFlags.options(cmd)
	if err != nil {
		return nil, err
	}
	src, err := a.openWith(cmd, target, opts)
	if err != nil {
		return nil, err
	}
	m, err := umbra.AttachSource(cmd.Context(), src, opts)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return m, nil
}

// withView attaches to target, gives read a view of its kernel and then tells, on
// standard error, what did not add up and, when asked, how the answer was
// obtained. Findings make the command end with errFindings.
func (a *app) withView(cmd *cobra.Command, target string, read func(m *umbra.Machine, v *kernel.View) error) error {
	done := a.status("reading " + table.Safe(target))
	defer done()
	m, err := a.attach(cmd, target)
	if err != nil {
		return a.notRecorded(err)
	}
	a.reading.forget() // of what was tried in looking for the kernel
	begun := time.Now()
	v := m.Kernel.View(cmd.Context(), mem.Options{})
	err = read(m, v)
	took := time.Since(begun)
	if err != nil && m.Source.Info().Live && cmd.Context().Err() == nil {
		// Perhaps the machine is not what it was.
		if gone := m.Kernel.Check(cmd.Context()); errors.Is(gone, kernel.ErrRebooted) || errors.Is(gone, mem.ErrGone) {
			err = errors.Join(gone, err)
		}
	}
	done()
	err = errors.Join(err, m.Close())
	if a.stats {
		a.printStats(m, v, took)
	}
	if err != nil {
		return a.notRecorded(err)
	}
	for _, d := range m.Kernel.Attached().Doubts {
		a.notef("umbra: note: %s", table.Safe(d))
	}
	return a.printFindings(v.Findings())
}

// printFindings tells what does not add up. What a recording lacks is no word on the
// machine: it makes the command fail.
func (a *app) printFindings(found []kernel.Finding) error {
	lacking := a.reading.err()
	printed := 0
	for _, f := range found {
		if lacking != nil && strings.Contains(f.What, mem.ErrNotRecorded.Error()) {
			continue
		}
		printed++
		a.notef("umbra: finding: %s: %s", table.Safe(f.Object), table.Safe(f.What))
	}
	if lacking != nil {
		return lacking
	}
	if printed > 0 {
		return errFindings
	}
	return nil
}

// printStats says what an answer cost and how far it can be trusted.
func (a *app) printStats(m *umbra.Machine, v *kernel.View, took time.Duration) {
	at, st, info := m.Kernel.Attached(), v.Snapshot().Stats(), m.Source.Info()
	types := "types read from the machine"
	if at.Cached {
		types = "types from the cache"
	}
	a.notef("umbra: %s:%s through %s", info.Kind, table.Safe(info.Name), table.Safe(info.Detail))
	a.notef("umbra: attached by %s in %.1f ms, %s of memory read, %s",
		at.Method, float64(at.Duration.Microseconds())/1000, table.Size(float64(at.Read)), types)
	rounds := "rounds"
	if info.Local {
		rounds = "reads" // nothing is gained by putting them together
	}
	a.notef("umbra: answer from %d pages in %d %s, %.1f ms, read %s to %s",
		st.Pages, st.Rounds, rounds, float64(took.Microseconds())/1000, clock(st.Begun), clock(st.Ended))
	a.notef("umbra: %d pages changed, %d objects were read again, %d kept moving", st.Changed, st.Retried, st.Moved)
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000Z")
}

// statusAfter is how long a command may take without a word.
const statusAfter = time.Second

// status shows on a terminal, from the first second on, what the program is at.
// The function it returns takes the line away; it may be called twice.
func (a *app) status(what string) (done func()) {
	if !a.stderrTTY {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		begun := time.Now()
		tick := time.NewTicker(statusAfter)
		defer tick.Stop()
		shown := false
		for {
			select {
			case <-ctx.Done():
				if shown {
					fmt.Fprint(a.stderr, "\r\x1b[K")
				}
				return
			case <-tick.C:
				shown = true
				fmt.Fprintf(a.stderr, "\r\x1b[Kumbra: %s … %ds", what, int(time.Since(begun).Seconds()))
			}
		}
	}()
	return func() {
		cancel()
		<-gone
	}
}
