package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/mem"
)

// maxCmdline bounds what is read of a process's command line, in bytes. libvirt
// writes some 10 KB.
const maxCmdline = 1 << 20

// process is one process of this host, held by a descriptor so that its PID
// cannot come to mean another one unnoticed.
type process struct {
	pid   int
	pidfd int
}

// openProcess takes hold of a process. It fails with os.ErrProcessDone when there
// is none.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL):
		// EINVAL: the number of a thread, or no PID at all.
		return nil, os.ErrProcessDone
	case err != nil:
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &process{pid: pid, pidfd: fd}, nil
}

func (p *process) close() { unix.Close(p.pidfd) }

// alive tells whether the process has not exited yet. One cheap system call.
func (p *process) alive() bool {
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 0 || errors.Is(err, unix.EINTR)
}

// explain turns a failure of talking to the process into mem.ErrGone when the
// reason is that it exits: its sockets close a moment before it has exited.
func (p *process) explain(err error) error {
	wait := 0
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		wait = 500 // milliseconds
	}
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	if n, perr := unix.Poll(fds, wait); perr == nil && n > 0 {
		return p.gone()
	}
	return err
}

// gone is the error for a machine whose process has exited.
func (p *process) gone() error {
	return fmt.Errorf("QEMU process %d has exited: %w", p.pid, mem.ErrGone)
}

// path is the name of a file about the process under /proc.
func (p *process) path(elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(p.pid)}, elem...)...)
}

// args returns the command line. It is empty for a zombie or a kernel thread.
func (p *process) args() ([]string, error) {
	f, err := os.Open(p.path("cmdline"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCmdline))
	if err != nil {
		return nil, err
	}
	b = bytes.TrimSuffix(b, []byte{0})
	if len(b) == 0 {
		return nil, nil
	}
	return strings.Split(string(b), "\x00"), nil
}

// isQEMU tells whether the process runs a QEMU system emulator: by its executable,
// or, where that may not be seen, by the first word of its command line.
func (p *process) isQEMU(args []string) bool {
	if len(args) == 0 {
		return false
	}
	exe, err := os.Readlink(p.path("exe"))
	if err != nil {
		exe = args[0]
	}
	return isEmulator(strings.TrimSuffix(exe, " (deleted)"))
}

// isEmulator tells whether an executable's path names a QEMU system emulator.
// Distributions that wrap programs hide the real one behind a dot.
func isEmulator(exe string) bool {
	base := strings.TrimPrefix(filepath.Base(exe), ".")
	return strings.HasPrefix(base, "qemu-system-") || base == "qemu-kvm" || base == "kvm"
}

// readState returns the state letter in a stat file of a process or thread
// (fs/proc/array.c, do_task_stat).
func readState(name string) (byte, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	// The name is in parentheses and can hold anything: count from the last one.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 || len(b) < i+3 || b[i+1] != ' ' {
		return 0, fmt.Errorf("%s: unexpected content", name)
	}
	return b[i+2], nil
}

// owner is the user the process runs as.
func (p *process) owner() (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat(p.path(), &st); err != nil {
		return 0, err
	}
	return st.Uid, nil
}

// eachQEMU calls f for every QEMU process on this host until f returns false. The
// process is closed afterwards unless f keeps it by returning keep.
func eachQEMU(ctx context.Context, f func(p *process, args []string) (keep bool)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := openProcess(pid)
		if err != nil {
			continue // it has exited since
		}
		args, err := p.args()
		if err != nil || !p.isQEMU(args) || !f(p, args) {
			p.close()
		}
	}
	return nil
}
