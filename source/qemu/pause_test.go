package qemu

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// killedWhilePaused runs a process that pauses v, checks that v stands still, and
// kills the process.
func killedWhilePaused(t *testing.T, v *vm, paused func() bool) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{helperEnv + "=pause " + strconv.Itoa(v.pid())}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "paused\n" {
		t.Fatalf("the process says %q, %v", line, err)
	}
	if !paused() {
		t.Error("the machine is not paused")
	}
}

// TestKilledWhilePaused: the machine goes on by itself when the process that paused
// it is killed, whichever way it was paused.
func TestKilledWhilePaused(t *testing.T) {
	t.Run("QMP", func(t *testing.T) {
		v := startVM(t, vmOptions{running: true})
		// The QMP socket is taken meanwhile: ask the CPUs themselves.
		probe, err := openProcess(v.pid())
		if err != nil {
			t.Fatal(err)
		}
		defer probe.close()
		if err := probe.mustRun(t.Context()); err != nil {
			t.Fatalf("before: %v", err)
		}
		killedWhilePaused(t, v, func() bool { return errors.Is(probe.mustRun(t.Context()), errRunState) })
		if !v.running(t) {
			// QMP answers us, so the watchdog has done its work and left.
			t.Error("the machine is still paused")
		}
	})
	t.Run("signal", func(t *testing.T) {
		v := startVM(t, vmOptions{running: true, noQMP: true})
		probe, err := openProcess(v.pid())
		if err != nil {
			t.Fatal(err)
		}
		defer probe.close()
		stopped := func() bool {
			s, err := probe.stopped()
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		killedWhilePaused(t, v, stopped)
		waitFor(t, "the process goes on", func() bool { return !stopped() })
	})
}

// TestWatchdogAfterHalfACommand: what the dead process left unfinished in the QMP
// stream does not keep the watchdog from being understood.
func TestWatchdogAfterHalfACommand(t *testing.T) {
	v := startVM(t, vmOptions{running: true})
	s := v.open(t)
	if _, err := s.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	fd, err := s.qmp.DupFD()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(`{"execute": "human-monitor-command", "arguments": {"com`)); err != nil {
		t.Fatal(err)
	}
	if err := s.fire(); err != nil {
		t.Errorf("watchdog: %v", err)
	}
	s.resume = nil
	s.Close()
	unix.Close(fd)
	if !v.running(t) {
		t.Error("the machine is still paused")
	}
}

// TestCloseResumes: closing lets a machine run that this source paused, and leaves
// one alone that was paused already.
func TestCloseResumes(t *testing.T) {
	v := startVM(t, vmOptions{running: true})
	s := v.open(t)
	resume, err := s.Pause(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if !v.running(t) {
		t.Error("the machine is still paused")
	}
	if d, err := resume(); err != nil || d == 0 {
		t.Errorf("resume after Close: %v, %v", d, err)
	}
	v.hmp(t, "stop")
	s = v.open(t)
	if _, err := s.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if v.running(t) {
		t.Error("a machine that was paused before runs now")
	}
}

// TestPauseNested: a second pause of a machine this source has paused does nothing,
// and does not let it run early.
func TestPauseNested(t *testing.T) {
	v := startVM(t, vmOptions{running: true})
	s := v.open(t)
	outer, err := s.Pause(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inner, err := s.Pause(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d, err := inner(); err != nil || d != 0 {
		t.Errorf("inner resume: %v, %v", d, err)
	}
	if p, err := s.Paused(t.Context()); err != nil || !p {
		t.Errorf("after the inner resume: paused %v, %v", p, err)
	}
	if d, err := outer(); err != nil || d == 0 {
		t.Errorf("outer resume: %v, %v", d, err)
	}
}

// TestStoppedQEMU: a QEMU process that somebody stopped answers nothing; that is an
// error soon, and its memory can be read all the same.
func TestStoppedQEMU(t *testing.T) {
	v := startVM(t, vmOptions{args: []string{"-m", "256"}})
	probe, err := openProcess(v.pid())
	if err != nil {
		t.Fatal(err)
	}
	defer probe.close()
	if err := probe.signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "QEMU stops", func() bool { s, err := probe.stopped(); return err == nil && s })
	s := v.open(t)
	if !errors.Is(s.qmpErr, errStopped) || !strings.Contains(s.Info().Detail, errStopped.Error()) {
		t.Errorf("QMP of a stopped process: %v", s.qmpErr)
	}
	if p, err := s.Paused(t.Context()); err != nil || !p {
		t.Errorf("paused %v, %v", p, err)
	}
	resume, err := s.Pause(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d, err := resume(); err != nil || d != 0 {
		t.Errorf("resume: %v, %v", d, err)
	}
	if stopped, err := probe.stopped(); err != nil || !stopped {
		t.Error("a process that somebody else stopped runs again")
	}
	// Let it run, so that it can be ended.
	if err := probe.signal(unix.SIGCONT); err != nil {
		t.Error(err)
	}
}

// TestWatchdogDetaches: a machine that a debugger's connection stopped runs again
// when the process behind the connection is gone.
func TestWatchdogDetaches(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "gdb")
	v := startVM(t, vmOptions{running: true, args: []string{"-gdb", "unix:" + socket + ",server=on,wait=off"}})
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var g *watchdog
	raw.Control(func(fd uintptr) { g, err = startWatchdog(actGDB, int(fd)) })
	if err != nil {
		t.Fatal(err)
	}
	if err := g.arm(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the connection stops the machine", func() bool { return !v.running(t) })
	if err := g.close(); err != nil {
		t.Errorf("watchdog: %v", err)
	}
	if !v.running(t) {
		t.Error("the machine is still stopped")
	}
}

// TestWatchdogTerminated: the signal that asks all processes of a service to end
// does not take the watchdog away from a paused machine.
func TestWatchdogTerminated(t *testing.T) {
	v := startVM(t, vmOptions{running: true})
	s := v.open(t)
	if _, err := s.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGINT} {
		if err := unix.Kill(s.guard.pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.fire(); err != nil {
		t.Errorf("watchdog: %v", err)
	}
	s.resume = nil
	s.Close()
	if !v.running(t) {
		t.Error("the machine is still paused")
	}
}
