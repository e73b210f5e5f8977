package qmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busyWait is how long a greeting may take while somebody else is seen to
	// hold the socket; greetWait, while nobody is.
	busyWait  = 250 * time.Millisecond
	greetWait = 5 * time.Second

	// maxSunPath is the longest path a Unix address holds, without its final zero.
	maxSunPath = 107
)

// Dial connects to the QMP socket at path and enters command mode. It returns
// ErrBusy within about 300 ms when another client holds the socket, and
// ErrNoAnswer after 5 s when QEMU stays silent for another reason.
func Dial(ctx context.Context, path string) (*Client, error) {
	c, err := dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("QMP socket %s: %w", path, err)
	}
	return c, nil
}

func dial(ctx context.Context, path string) (*Client, error) {
	wait, silent := greetWait, ErrNoAnswer
	if Held(path) {
		wait, silent = busyWait, ErrBusy
	}
	conn, err := connect(ctx, path)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, r: bufio.NewReader(conn)}
	if err := c.greet(ctx, wait, silent); err != nil {
		conn.Close()
		return nil, err
	}
	if _, err := c.execute(ctx, "qmp_capabilities", nil); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// greet waits for the greeting. When none comes in time it fails with silent.
func (c *Client) greet(ctx context.Context, wait time.Duration, silent error) error {
	gctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	m, err := c.exchange(gctx, nil, "")
	switch {
	case err == nil:
		c.version = m.Greeting.Version.QEMU
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case gctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		return silent
	}
	return fmt.Errorf("not a QMP socket: %w", err)
}

// connect opens the socket at path, however long path is.
func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	addr := path
	if len(path) > maxSunPath {
		dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(dir)
		addr = filepath.Join("/proc/self/fd", strconv.Itoa(dir), filepath.Base(path))
	}
	conn, err := d.DialContext(ctx, "unix", addr)
	if errors.Is(err, unix.EAGAIN) {
		// QEMU lets one client wait, and even one that gave up stays in that queue
		// until QEMU accepts it.
		return nil, ErrBusy
	}
	if err != nil {
		var se *os.SyscallError
		if errors.As(err, &se) {
			return nil, se.Err
		}
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// Held tells whether somebody is connected to the socket at path. QEMU accepts the
// next client only when that one is gone. A connection still waiting to be accepted
// has inode 0 in the kernel's table (net/unix/af_unix.c, unix_seq_show).
func Held(path string) bool {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(table)) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) < 8 || f[5] != "03" || f[6] == "0" {
			continue
		}
		if _, bound, ok := strings.Cut(strings.TrimSpace(line), " "+f[6]+" "); ok && samePath(bound, path) {
			return true
		}
	}
	return false
}

// samePath tells whether a socket bound as bound can be the one at path. A relative
// one was bound in a directory that is not known here.
func samePath(bound, path string) bool {
	if bound == path {
		return true
	}
	if filepath.Base(bound) != filepath.Base(path) {
		return false
	}
	if !filepath.IsAbs(bound) {
		return true
	}
	a, aerr := os.Stat(bound)
	b, berr := os.Stat(path)
	return aerr == nil && berr == nil && os.SameFile(a, b)
}

// Peer returns the process that listens on the socket, as the kernel recorded it
// when that process started to listen.
func (c *Client) Peer() (pid int, err error) {
	return pid, c.control(func(fd int) error {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			pid = int(cred.Pid)
		}
		return err
	})
}

// DupFD returns a duplicate of the connection's descriptor, close-on-exec, for a
// helper process that must be able to speak when this one no longer can.
func (c *Client) DupFD() (fd int, err error) {
	return fd, c.control(func(sock int) error {
		fd, err = unix.FcntlInt(uintptr(sock), unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
}

func (c *Client) control(f func(fd int) error) error {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}
