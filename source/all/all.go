// Package all opens a machine by the name a person gives it. It is the one list of
// the ways to reach memory.
package all

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/dump"
	"github.com/umbravm/umbra/source/qemu"
	"github.com/umbravm/umbra/source/replay"
)

// Options of Open that only some ways to reach memory use.
type Options struct {
	Dump dump.Options // how to read a dump file that does not say what it is
}

// kinds are the prefixes a target can have.
var kinds = map[string]func(ctx context.Context, rest string, opts Options) (source.Source, error){
	"qemu": func(ctx context.Context, rest string, _ Options) (source.Source, error) {
		return opened(qemu.Open(ctx, rest))
	},
	"dump": func(ctx context.Context, rest string, opts Options) (source.Source, error) {
		return opened(dump.Open(ctx, rest, opts.Dump))
	},
	"replay": func(ctx context.Context, rest string, _ Options) (source.Source, error) {
		return opened(replay.Open(ctx, rest))
	},
}

// opened keeps a nil *T from becoming a source.Source that is not nil.
func opened[S source.Source](s S, err error) (source.Source, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Open opens the machine that target names: "qemu:NAME", "qemu:PID",
// "qemu:QMP-SOCKET", "dump:FILE", "replay:FILE"; without a prefix an existing
// regular file (a dump, or a recorded bundle by its content) or a running machine.
func Open(ctx context.Context, target string, opts Options) (source.Source, error) {
	if kind, rest, ok := strings.Cut(target, ":"); ok {
		if open := kinds[kind]; open != nil {
			return open(ctx, rest, opts)
		}
	}
	if target == "" {
		return nil, fmt.Errorf("no machine named")
	}
	fi, err := os.Stat(target)
	switch {
	case err != nil || fi.Mode().Type() == os.ModeSocket:
	case !fi.Mode().IsRegular() && strings.Contains(target, "/"):
		return nil, fmt.Errorf("%s is neither a file of memory nor a QMP socket", target)
	case fi.Mode().IsRegular():
		kind := "dump"
		if isBundle(target) {
			kind = "replay"
		}
		return kinds[kind](ctx, target, opts)
	}
	src, err := kinds["qemu"](ctx, target, opts)
	if kind, _, ok := strings.Cut(target, ":"); ok && errors.Is(err, qemu.ErrNoMachine) {
		return nil, fmt.Errorf("%w (and %q is no kind of target: those are qemu, dump, replay)", err, kind)
	}
	return src, err
}

// isBundle tells whether a file begins as a page bundle does.
func isBundle(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false // opening it as a dump says why
	}
	defer f.Close()
	var head [8]byte
	n, _ := io.ReadFull(f, head[:])
	return mem.IsBundle(head[:n])
}
