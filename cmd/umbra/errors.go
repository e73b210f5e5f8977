package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/source/dump"
	"github.com/umbravm/umbra/table"
)

// Exit statuses.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitFindings = 3
	exitSignal   = 130 // as a shell reports a program that Ctrl-C ended
)

// usageError is a command line that makes no sense.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string    { return e.err.Error() }
func (e *usageError) Unwrap() error    { return e.err }
func (e *usageError) HintLine() string { return e.hint }

// usagef is a usageError that points to the command's help.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...), fmt.Sprintf("see %s --help", cmd.CommandPath())}
}

// hintError is an error that the command line knows a way out of.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string    { return e.err.Error() }
func (e *hintError) Unwrap() error    { return e.err }
func (e *hintError) HintLine() string { return e.hint }

// errFindings ends a command whose answer stands but came with findings, which
// have been printed.
var errFindings = errors.New("something does not add up")

// fail prints err as people are told of errors and returns the exit status.
func (a *app) fail(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errFindings):
		return exitFindings
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		a.notef("umbra: interrupted")
		return exitSignal
	}
	status := exitFailed
	var usage *usageError
	if errors.As(err, &usage) {
		status = exitUsage
	} else if strings.HasPrefix(err.Error(), "unknown command ") {
		status = exitUsage // cobra has no type for it
	}
	a.notef("umbra: %s", lines(err))
	if hint := hintFor(err); hint != "" {
		a.notef("hint: %s", table.Safe(hint))
	}
	return status
}

// hintFor returns a way out of err, "" when none is known.
func hintFor(err error) string {
	var hinter interface{ HintLine() string }
	switch {
	case errors.As(err, &hinter):
		return hinter.HintLine()
	case errors.Is(err, kernel.ErrNoKernel):
		return "the machine may still be booting, or run something else than Linux on x86-64"
	case errors.Is(err, dump.ErrFormat):
		return "raw memory is read with --layout START-END"
	}
	return ""
}

// lines renders an error; joined ones stand on lines of their own.
func lines(err error) string {
	var parts []string
	for part := range strings.SplitSeq(strings.TrimSpace(err.Error()), "\n") {
		// A write and the close after it often fail for one reason.
		if part = table.Safe(part); !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "\n  ")
}
