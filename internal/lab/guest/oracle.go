package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runOracle answers the host's questions. Between them it blocks in one read, so
// that the guest does not change.
func runOracle() error {
	p, err := readParams()
	if err != nil {
		return err
	}
	port, pack, err := openPort(p.oracle)
	if err != nil {
		return err
	}
	if err := ready(nil); err != nil {
		return err
	}
	in := bufio.NewReader(port)
	for {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			// Nobody is connected on the host's side yet.
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "quit" {
			return nil
		}
		body, err := answer(line)
		if err := reply(port, pack, body, err); err != nil {
			return err
		}
	}
}

// openPort opens the channel to the host. A UART is so slow that answers are
// packed; a virtio port is not.
func openPort(name string) (f *os.File, pack bool, err error) {
	if name != "virtio" {
		f, err := openSerial("/dev/" + name)
		return f, true, err
	}
	for range 500 {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, _ := os.ReadFile(n); strings.TrimSpace(string(b)) == "umbra.oracle" {
				f, err := openBlocking("/dev/" + filepath.Base(filepath.Dir(n)))
				return f, false, err
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, false, errors.New("no virtio port umbra.oracle")
}

// openBlocking opens a device without Go's poller, which would take an epoll
// descriptor and a thread of its own.
func openBlocking(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openSerial opens a terminal for bytes as they are.
func openSerial(path string) (*os.File, error) {
	f, err := openBlocking(path)
	if err != nil {
		return nil, err
	}
	t := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200, Ispeed: unix.B115200, Ospeed: unix.B115200}
	t.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &t); err != nil {
		return nil, fmt.Errorf("set up %s: %w", path, err)
	}
	return f, nil
}

func reply(w io.Writer, pack bool, body []byte, err error) error {
	status, encoding := "ok", "raw"
	if err != nil {
		status, body = "err", []byte(err.Error())
	}
	if pack && len(body) > 200 {
		var z bytes.Buffer
		g, err := gzip.NewWriterLevel(&z, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if _, err := g.Write(body); err != nil {
			return err
		}
		if err := g.Close(); err != nil {
			return err
		}
		body, encoding = z.Bytes(), "gzip"
	}
	if _, err := fmt.Fprintf(w, "%s %s %d\n", status, encoding, len(body)); err != nil {
		return err
	}
	_, err = w.Write(body)
	return err
}

// answer carries out one command.
func answer(line string) ([]byte, error) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "cat":
		return os.ReadFile(rest)
	case "readlink":
		target, err := os.Readlink(rest)
		return []byte(target), err
	case "state":
		return os.ReadFile(stateFile)
	case "exec":
		m, err := spawn(roleProcess(rest))
		if err != nil {
			return nil, err
		}
		return json.Marshal(m)
	case "ls":
		return list(rest)
	case "proc":
		// Nothing else collects what the last archive took (GOGC is off). It is done
		// before the answer, after which the guest has to stay as it is.
		debug.FreeOSMemory()
		return procArchive(rest)
	case "kill":
		return nil, sendSignal(rest)
	}
	return nil, fmt.Errorf("unknown command %q", verb)
}

func list(dir string) ([]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, e := range entries {
		fmt.Fprintln(&b, e.Name())
	}
	return b.Bytes(), nil
}

func sendSignal(args string) error {
	pid, sig, _ := strings.Cut(args, " ")
	p, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	s, err := strconv.Atoi(sig)
	if err != nil {
		return err
	}
	return syscall.Kill(p, syscall.Signal(s))
}
