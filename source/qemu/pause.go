package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// commandTimeout bounds stop and cont. They are not cut off with the caller's
	// context: half a stop is worse than a late one.
	commandTimeout = 10 * time.Second

	// stopTimeout bounds the wait for all threads of a process to stop.
	stopTimeout = 2 * time.Second
)

// Paused tells whether the machine stands still. Without QMP a machine that was
// paused through its monitor looks like one that idles: when its CPUs show no
// activity for a second the answer is an error.
func (s *Source) Paused(ctx context.Context) (bool, error) {
	if s.p == nil {
		return false, errClosed
	}
	if s.qmp != nil {
		st, err := s.status(ctx)
		if err != nil {
			return false, s.p.explain(err)
		}
		return !st.Running, nil
	}
	stopped, err := s.p.stopped()
	if err != nil || stopped {
		return stopped, err
	}
	return false, s.p.mustRun(ctx)
}

// Pause stops the machine: through QMP or, without it, by stopping the QEMU
// process. Its time is counted from before the stop is asked for until after the
// machine was told to go on. While it is paused a watchdog process stands by.
func (s *Source) Pause(ctx context.Context) (resume func() (time.Duration, error), err error) {
	if s.p == nil {
		return nil, errClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var paused bool
	if s.qmp != nil {
		paused, err = s.Paused(ctx)
	} else {
		// Stopping the process leaves the machine's own run state alone, so
		// whether the monitor paused it does not matter.
		paused, err = s.p.stopped()
	}
	if err != nil {
		return nil, fmt.Errorf("pause: %w", err)
	}
	if paused {
		return func() (time.Duration, error) { return 0, nil }, nil
	}
	if err := s.arm(ctx); err != nil {
		return nil, fmt.Errorf("pause: %w", err)
	}
	start := time.Now()
	if err := s.stop(); err != nil {
		return nil, errors.Join(fmt.Errorf("pause: %w", err), s.fire())
	}
	s.resume = sync.OnceValue(func() error {
		s.resume = nil
		if err := s.cont(); err != nil {
			return errors.Join(fmt.Errorf("resume: %w", err), s.fire())
		}
		return s.guard.disarm()
	})
	once := s.resume
	return sync.OnceValues(func() (time.Duration, error) {
		err := once()
		return time.Since(start), err
	}), nil
}

// arm makes the watchdog responsible for letting the machine run again.
func (s *Source) arm(ctx context.Context) error {
	if s.guard == nil {
		g, err := s.newGuard()
		if err != nil {
			return fmt.Errorf("watchdog: %w", err)
		}
		s.guard = g
	}
	if err := s.guard.arm(ctx); err != nil {
		s.guard.close()
		s.guard = nil
		return fmt.Errorf("watchdog: %w", err)
	}
	return nil
}

func (s *Source) newGuard() (*watchdog, error) {
	if s.qmp == nil {
		return startWatchdog(actSignal, s.p.pidfd)
	}
	fd, err := s.qmp.DupFD()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return startWatchdog(actQMP, fd)
}

// fire lets the armed watchdog act at once: the way of last resort to make the
// machine run when the usual one failed.
func (s *Source) fire() error {
	g := s.guard
	s.guard = nil
	return g.close()
}

func (s *Source) stop() error {
	if s.qmp != nil {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		if err := s.qmp.Execute(ctx, "stop", nil, nil); err != nil {
			return s.p.explain(err)
		}
		return nil
	}
	if err := s.p.signal(unix.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(stopTimeout); ; {
		stopped, err := s.p.stopped()
		if err != nil || stopped {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("QEMU process %d does not stop within %v", s.p.pid, stopTimeout)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (s *Source) cont() error {
	if s.qmp == nil {
		return s.p.signal(unix.SIGCONT)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	if err := s.qmp.Execute(ctx, "cont", nil, nil); err != nil {
		return s.p.explain(err)
	}
	return nil
}

func (p *process) signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return p.gone()
	case errors.Is(err, unix.EPERM):
		return &TargetError{
			Err:  fmt.Errorf("%w: stopping QEMU process %d needs its user id or CAP_KILL", ErrPermission, p.pid),
			Hint: "run umbra as root",
		}
	}
	return err
}

// stopped tells whether every thread of the process is stopped by a signal.
func (p *process) stopped() (bool, error) {
	tasks, err := filepath.Glob(p.path("task", "*"))
	if err != nil {
		return false, err
	}
	if len(tasks) == 0 || !p.alive() {
		return false, p.gone()
	}
	for _, dir := range tasks {
		state, err := readState(filepath.Join(dir, "stat"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // a thread that has just ended
		}
		if err != nil {
			return false, err
		}
		if state != 'T' && state != 't' {
			return false, nil
		}
	}
	return true, nil
}

// errRunState: neither activity nor a stop can be seen.
var errRunState = errors.New("cannot tell whether the machine is paused: it has no QMP to ask and its CPUs are idle or have no name")

const (
	activityTime = time.Second
	activityStep = 5 * time.Millisecond
)

// mustRun returns nil when the machine's CPUs are seen to run, or errRunState.
// A paused CPU's thread is never scheduled; one that waits in the host's kernel
// for its guest's next interrupt is inside KVM_RUN, which a paused one is not.
func (p *process) mustRun(ctx context.Context) error {
	tasks, err := filepath.Glob(p.path("task", "*"))
	if err != nil {
		return err
	}
	slices := map[string]string{}
	changes := 0
	for deadline := time.Now().Add(activityTime); time.Now().Before(deadline); {
		for _, dir := range tasks {
			if inKVMRun(dir) {
				return nil
			}
			now := timeslices(dir)
			if old, seen := slices[dir]; seen && old != now {
				changes++
			}
			slices[dir] = now
		}
		// One wake-up may be a question somebody asks a paused CPU.
		if changes > 2 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(activityStep):
		}
	}
	if !p.alive() {
		return p.gone()
	}
	return errRunState
}

// timeslices is a vCPU thread's count of runs on a host CPU together with the time
// it ran, or "" for another thread. QEMU names its vCPU threads "CPU n/KVM" or
// "CPU n/TCG" when started with debug-threads=on, as libvirt does.
func timeslices(dir string) string {
	comm, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil || len(comm) < 4 || string(comm[:4]) != "CPU " {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(dir, "schedstat"))
	if err != nil {
		return ""
	}
	return string(b)
}

// inKVMRun tells whether a thread is in ioctl(KVM_RUN). The file shows the number
// of the system call and its arguments (fs/proc/base.c, proc_pid_syscall).
func inKVMRun(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "syscall"))
	if err != nil {
		return false
	}
	var nr int
	var fd, request uint64
	n, _ := fmt.Sscanf(string(b), "%d 0x%x 0x%x", &nr, &fd, &request)
	return n == 3 && nr == unix.SYS_IOCTL && request == 0xae80
}
