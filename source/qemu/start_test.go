package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/qmp"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source/sourcetest"
)

// vm is a QEMU process of a test. It has no kernel: firmware at most.
type vm struct {
	name   string
	socket string // its QMP socket, "" when it has none
	cmd    *exec.Cmd
	stderr bytes.Buffer
	known  []sourcetest.Chunk
	exited chan struct{}
}

// vmOptions say what to start. The zero value is a paused stock machine with QMP.
type vmOptions struct {
	args    []string
	noQMP   bool
	running bool       // let the firmware run
	fill    []mem.Phys // where QEMU's loader puts known content
}

// startVM starts QEMU and ends it with the test.
func startVM(t testing.TB, o vmOptions) *vm {
	t.Helper()
	// Not t.TempDir: a test's name can hold what QEMU's option syntax cannot.
	dir, err := os.MkdirTemp("", "umbra-qemu-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &vm{name: filepath.Base(dir), exited: make(chan struct{})}
	args := []string{"-name", "guest=" + v.name + ",debug-threads=on", "-accel", "tcg", "-display", "none", "-nodefaults"}
	if !o.noQMP {
		v.socket = filepath.Join(dir, "qmp")
		args = append(args, "-qmp", "unix:"+v.socket+",server=on,wait=off")
	}
	if !o.running {
		args = append(args, "-S")
	}
	for i, at := range o.fill {
		args = append(args, "-device", v.loader(t, dir, i, at))
	}
	v.cmd = exec.Command("qemu-system-x86_64", append(args, o.args...)...)
	v.cmd.Stderr = &v.stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		t.Fatalf("start QEMU (Debian: apt-get install qemu-system-x86): %v", err)
	}
	go func() {
		v.cmd.Wait()
		close(v.exited)
	}()
	t.Cleanup(v.kill)
	v.ready(t)
	return v
}

// loader writes a file of known bytes and returns the device that makes QEMU copy
// it to at.
func (v *vm) loader(t testing.TB, dir string, i int, at mem.Phys) string {
	data := make([]byte, 6000)
	for j := 0; j < len(data); j += 8 {
		binary.LittleEndian.PutUint64(data[j:], uint64(at)+uint64(j)*0x9e3779b97f4a7c15|1)
	}
	file := filepath.Join(dir, "fill"+strconv.Itoa(i))
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	v.known = append(v.known, sourcetest.Chunk{Addr: at, Data: data})
	return fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", file, uint64(at))
}

// ready waits until QEMU has set up the machine.
func (v *vm) ready(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		select {
		case <-v.exited:
			t.Fatalf("QEMU exited: %s", v.stderr.String())
		case <-time.After(10 * time.Millisecond):
		}
		if v.socket == "" {
			if v.settled() {
				return
			}
			continue
		}
		if c, err := qmp.Dial(t.Context(), v.socket); err == nil {
			c.Close()
			return
		}
	}
	t.Fatal("QEMU is not ready after 30 s")
}

// settled tells whether a QEMU without QMP reached its main loop: its main thread
// waits in poll, and the vCPU threads exist.
func (v *vm) settled() bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", v.pid()))
	cpus := 0
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		if strings.HasPrefix(string(b), "CPU ") {
			cpus++
		}
	}
	sc, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", v.pid()))
	number, _, _ := strings.Cut(string(sc), " ")
	return cpus > 0 && (number == strconv.Itoa(syscall.SYS_PPOLL) || number == strconv.Itoa(syscall.SYS_POLL))
}

func (v *vm) pid() int { return v.cmd.Process.Pid }

// kill ends QEMU and waits until it is gone.
func (v *vm) kill() {
	v.cmd.Process.Kill()
	<-v.exited
}

// monitor runs f with a QMP session of the test's own.
func (v *vm) monitor(t testing.TB, f func(c *qmp.Client)) {
	t.Helper()
	c, err := qmp.Dial(context.Background(), v.socket)
	// The last client may be just leaving.
	for deadline := time.Now().Add(30 * time.Second); errors.Is(err, qmp.ErrBusy) && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
		c, err = qmp.Dial(context.Background(), v.socket)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f(c)
}

// hmp runs one line of the human monitor.
func (v *vm) hmp(t testing.TB, line string) (out string) {
	t.Helper()
	v.monitor(t, func(c *qmp.Client) {
		var err error
		if out, err = c.HMP(t.Context(), line); err != nil {
			t.Fatal(err)
		}
	})
	return out
}

// running asks QEMU whether the machine runs.
func (v *vm) running(t testing.TB) (running bool) {
	t.Helper()
	v.monitor(t, func(c *qmp.Client) {
		var st status
		if err := c.Execute(t.Context(), "query-status", nil, &st); err != nil {
			t.Fatal(err)
		}
		running = st.Running
	})
	return running
}

// ramFile returns a path on tmpfs for guest RAM.
func ramFile(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "umbra-qemu-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "ram")
}

// open attaches to v and closes with the test.
func (v *vm) open(t testing.TB) *Source {
	t.Helper()
	s, err := Open(t.Context(), strconv.Itoa(v.pid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
