package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The watchdog is this program started a second time. It holds the read end of a
// pipe and what it takes to let the machine run: the already open QMP connection
// (QEMU serves one client at a time, so it could not open one of its own), a GDB
// stub's connection or the QEMU process's descriptor. While it is armed, the end
// of the pipe means that this process died, and it acts. It has its own session,
// so that Ctrl-C at the terminal leaves it alone, and ignores the signals that ask
// both to end, as a service manager sends them to all processes of a service.
//
// On its standard input: 'a' arms it and is answered by 'a' on its standard
// output, 'd' disarms it. Descriptor 3 is what it acts through.
const (
	watchdogEnv   = "UMBRA_QEMU_WATCHDOG"
	cmdArm        = 'a'
	cmdDisarm     = 'd'
	actionFD      = 3
	watchdogStart = 10 * time.Second
	watchdogEnd   = 10 * time.Second
)

// What the watchdog does, by the value of watchdogEnv.
const (
	actQMP    = "qmp"    // cont on a QMP connection
	actGDB    = "gdb"    // detach on a GDB stub's connection
	actSignal = "signal" // SIGCONT through a pidfd
)

// watchdogReady is set by RunWatchdogIfAsked.
var watchdogReady atomic.Bool

var errNoWatchdog = errors.New("this program does not call qemu.RunWatchdogIfAsked at the start of main")

// RunWatchdogIfAsked must be the first thing a program's main does that pauses
// machines: the process that guards a paused machine is the same program, started
// again. In that process it does not return.
func RunWatchdogIfAsked() {
	action := os.Getenv(watchdogEnv)
	if action == "" {
		watchdogReady.Store(true)
		return
	}
	if err := guard(action); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// guard is the watchdog's main.
func guard(action string) error {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
	armed := false
	var cmd [1]byte
	for {
		n, err := unix.Read(0, cmd[:])
		switch {
		case err == unix.EINTR:
		case err != nil || n == 0:
			if armed {
				return act(action)
			}
			return nil
		case cmd[0] == cmdArm:
			armed = true
			// A parent that died before reading this shows in the next read.
			unix.Write(1, cmd[:])
		case cmd[0] == cmdDisarm:
			armed = false
		}
	}
}

func act(action string) error {
	switch action {
	case actSignal:
		return unix.PidfdSendSignal(actionFD, unix.SIGCONT, nil, 0)
	case actGDB:
		return say("$D#44", "OK")
	case actQMP:
		// The dead process may have been in the middle of a command: 0xff, which no
		// JSON holds, makes QEMU's parser start afresh.
		return say("\xff\n{\"execute\":\"cont\",\"id\":\"umbra-watchdog\"}\n", "umbra-watchdog")
	}
	return fmt.Errorf("unknown action %q", action)
}

// say writes line to the action's connection and waits until want is answered.
func say(line, want string) error {
	deadline := time.Now().Add(watchdogEnd)
	for line != "" {
		n, err := unix.Write(actionFD, []byte(line))
		switch {
		case err == unix.EAGAIN:
			if err := waitFD(unix.POLLOUT, deadline); err != nil {
				return err
			}
		case err == unix.EINTR:
		case err != nil:
			return err
		default:
			line = line[n:]
		}
	}
	var seen []byte
	buf := make([]byte, 4096)
	for {
		if err := waitFD(unix.POLLIN, deadline); err != nil {
			return err
		}
		n, err := unix.Read(actionFD, buf)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.EPIPE
		}
		seen = append(seen, buf[:n]...)
		if bytes.Contains(seen, []byte(want)) {
			return nil
		}
		seen = seen[max(0, len(seen)-len(want)):]
	}
}

func waitFD(events int16, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: actionFD, Events: events}}, int(left.Milliseconds())+1)
		if err != unix.EINTR && (err != nil || n > 0) {
			return err
		}
	}
}

// watchdog is the parent's end of the watchdog process.
type watchdog struct {
	pid  int
	to   *os.File // closing it tells the watchdog that we are gone
	from *os.File
}

// startWatchdog starts the process, with fd to act through. The caller keeps fd.
func startWatchdog(action string, fd int) (*watchdog, error) {
	if !watchdogReady.Load() {
		return nil, errNoWatchdog
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer inR.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		inW.Close()
		return nil, err
	}
	defer outW.Close()
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(null)
		var pid int
		// Not os/exec: it would turn the connection, shared with us, to blocking mode.
		pid, err = syscall.ForkExec("/proc/self/exe", []string{"umbra-watchdog"}, &syscall.ProcAttr{
			Env:   []string{watchdogEnv + "=" + action, "GOMAXPROCS=1"},
			Files: []uintptr{inR.Fd(), outW.Fd(), uintptr(null), uintptr(fd)},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		})
		if err == nil {
			return &watchdog{pid: pid, to: inW, from: outR}, nil
		}
	}
	inW.Close()
	outR.Close()
	return nil, err
}

// arm returns once the watchdog is on guard.
func (w *watchdog) arm(ctx context.Context) error {
	deadline := time.Now().Add(watchdogStart)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := w.from.SetReadDeadline(deadline); err != nil {
		return err
	}
	if _, err := w.to.Write([]byte{cmdArm}); err != nil {
		return err
	}
	var ack [1]byte
	if _, err := w.from.Read(ack[:]); err != nil {
		return fmt.Errorf("process %d does not start: %w", w.pid, err)
	}
	return nil
}

func (w *watchdog) disarm() error {
	_, err := w.to.Write([]byte{cmdDisarm})
	return err
}

// close ends the watchdog. One that is armed acts first.
func (w *watchdog) close() error {
	w.to.Close()
	w.from.Close()
	proc, err := os.FindProcess(w.pid)
	if err != nil {
		return err
	}
	kill := time.AfterFunc(2*watchdogEnd, func() { proc.Kill() })
	defer kill.Stop()
	st, err := proc.Wait()
	if err == nil && !st.Success() {
		err = fmt.Errorf("watchdog: %v", st)
	}
	return err
}
