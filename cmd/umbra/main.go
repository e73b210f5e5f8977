// Command umbra looks into a running Linux virtual machine from outside: it reads
// the machine's memory and lists what runs in it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/umbravm/umbra/source/qemu"
)

func main() {
	qemu.RunWatchdogIfAsked()
	os.Exit(run())
}

// run is the program, with its exit status for a result.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// A second Ctrl-C ends the program at once.
	context.AfterFunc(ctx, stop)

	a := &app{
		stdout: os.Stdout, stderr: os.Stderr,
		stdoutTTY: term.IsTerminal(int(os.Stdout.Fd())),
		stderrTTY: term.IsTerminal(int(os.Stderr.Fd())),
	}
	err := a.root().ExecuteContext(ctx)
	return a.fail(ctx, err)
}
