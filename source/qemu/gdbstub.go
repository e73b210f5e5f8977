package qemu

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// stubTimeout bounds a whole visit to the GDB stub, during which the machine
	// stands still.
	stubTimeout = 3 * time.Second

	// maxPacket is the longest packet accepted, in bytes; QEMU's own limit is 4 KiB.
	maxPacket = 64 << 10

	maxPackets = 1 << 16
)

// stubRegisters asks the GDB stub's monitor passthrough for the registers. A
// connection stops the machine and a detach lets it run, whatever it did before:
// so only a machine that is seen to run is asked.
func (s *Source) stubRegisters(ctx context.Context) (string, error) {
	network, addr, err := stubAddress(s.cfg.gdb)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoRegisters, err)
	}
	if stopped, err := s.p.stopped(); err != nil || stopped {
		return "", fmt.Errorf("%w: %w", ErrNoRegisters, cmp.Or(err, errStopped))
	}
	if err := s.p.mustRun(ctx); err != nil {
		return "", fmt.Errorf("%w: GDB stub: %w", ErrNoRegisters, err)
	}
	if network == "tcp" && stubHeld(addr) {
		return "", fmt.Errorf("%w: another debugger is connected to the GDB stub", ErrNoRegisters)
	}
	text, err := visitStub(ctx, network, addr)
	if err != nil {
		return "", fmt.Errorf("%w: GDB stub at %s: %w", ErrNoRegisters, addr, err)
	}
	return text, nil
}

// stubAddress reads the value of -gdb: tcp:[HOST]:PORT or unix:PATH with options.
func stubAddress(dev string) (network, addr string, err error) {
	if path, ok := strings.CutPrefix(dev, "unix:"); ok {
		return "unix", parseOptions(path)[""], nil
	}
	rest, ok := strings.CutPrefix(dev, "tcp:")
	if !ok {
		return "", "", fmt.Errorf("GDB stub on %q is not used", dev)
	}
	host, port, err := net.SplitHostPort(parseOptions(rest)[""])
	if err != nil {
		return "", "", err
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	return "tcp", net.JoinHostPort(host, port), nil
}

// stubHeld tells whether somebody is connected to a local TCP port. A connection
// of ours would wait in the queue and stop the machine when that one leaves.
func stubHeld(addr string) bool {
	_, port, _ := net.SplitHostPort(addr)
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return false
	}
	suffix := fmt.Sprintf(":%04X", n)
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(table)) {
			// sl local_address rem_address st …; 01 is ESTABLISHED
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], suffix) && f[3] == "01" {
				return true
			}
		}
	}
	return false
}

// visitStub connects, asks and detaches, under a watchdog that detaches instead of
// this process should it die.
func visitStub(ctx context.Context, network, addr string) (text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, stubTimeout)
	defer cancel()
	var guard *watchdog
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		if guard != nil {
			return errors.New("second address")
		}
		var gerr error
		err := c.Control(func(fd uintptr) { guard, gerr = startWatchdog(actGDB, int(fd)) })
		if err == nil {
			err = gerr
		}
		if err == nil {
			err = guard.arm(ctx)
		}
		return err
	}}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		if guard != nil {
			err = errors.Join(err, guard.disarm(), guard.close())
		}
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", errors.Join(err, guard.close())
	}
	stub := &stub{conn: conn, r: bufio.NewReader(conn)}
	text, err = stub.monitor("info registers -a")
	if derr := stub.detach(); derr != nil {
		// Perhaps it still understands the watchdog.
		return "", errors.Join(err, derr, guard.close())
	}
	return text, errors.Join(err, guard.disarm(), guard.close())
}

// stub is a session with a GDB stub (the GDB remote serial protocol).
type stub struct {
	conn net.Conn
	r    *bufio.Reader
}

// monitor runs a line of the human monitor and returns what it prints.
func (s *stub) monitor(line string) (string, error) {
	if err := s.send("qRcmd," + hex.EncodeToString([]byte(line))); err != nil {
		return "", err
	}
	var out strings.Builder
	for range maxPackets {
		p, err := s.receive()
		if err != nil {
			return "", err
		}
		switch {
		case p == "OK":
			return out.String(), nil
		case strings.HasPrefix(p, "O"):
			text, err := hex.DecodeString(p[1:])
			if err != nil {
				return "", fmt.Errorf("output packet: %w", err)
			}
			if out.Len()+len(text) > maxRegisterText {
				return "", errors.New("endless output")
			}
			out.Write(text)
		case strings.HasPrefix(p, "T") || strings.HasPrefix(p, "S"):
			// The machine has stopped, as it does for every connection.
		default:
			return "", fmt.Errorf("monitor command is refused: %.20q", p)
		}
	}
	return "", errors.New("endless output")
}

// detach lets the machine run.
func (s *stub) detach() error {
	if err := s.send("D"); err != nil {
		return err
	}
	for range maxPackets {
		p, err := s.receive()
		if err != nil {
			return fmt.Errorf("detach: %w", err)
		}
		if p == "OK" {
			return nil
		}
	}
	return errors.New("detach: no answer")
}

// send writes the packet $DATA#SUM.
func (s *stub) send(data string) error {
	_, err := fmt.Fprintf(s.conn, "$%s#%02x", data, checksum(data))
	return err
}

func (s *stub) receive() (string, error) {
	p, err := readPacket(s.r)
	if err != nil {
		return "", err
	}
	_, err = s.conn.Write([]byte("+"))
	return p, err
}

func checksum(s string) (sum uint8) {
	for i := range len(s) {
		sum += s[i]
	}
	return sum
}

// readPacket reads the next packet's data. What stands between packets, such as
// acknowledgements, is skipped.
func readPacket(r *bufio.Reader) (string, error) {
	for n := 0; ; n++ {
		b, err := r.ReadByte()
		if err != nil {
			return "", err
		}
		if b == '$' {
			break
		}
		if n == maxPacket {
			return "", errors.New("not a GDB stub")
		}
	}
	var data []byte
	for {
		b, err := r.ReadByte()
		if err != nil {
			return "", err
		}
		if b == '#' {
			break
		}
		if len(data) == maxPacket {
			return "", errors.New("packet is too long")
		}
		data = append(data, b)
	}
	var sum [2]byte
	if _, err := io.ReadFull(r, sum[:]); err != nil {
		return "", err
	}
	want, err := strconv.ParseUint(string(sum[:]), 16, 8)
	if err != nil || uint8(want) != checksum(string(data)) {
		return "", errors.New("packet with a wrong checksum")
	}
	return string(data), nil
}
