package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/umbravm/umbra/internal/lab"
)

// askSocket is the socket in a guest's directory on which labctl boot takes
// commands for the oracle: QEMU's own serves one client only.
const askSocket = "ask"

// serve takes commands for the guest until ctx is done or QEMU has ended.
func serve(ctx context.Context, g *lab.Guest) error {
	if err := os.WriteFile(filepath.Join(g.Dir(), "name"), []byte(g.Name()), 0o600); err != nil {
		return err
	}
	l, err := net.Listen("unix", filepath.Join(g.Dir(), askSocket))
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go relay(ctx, g, conn)
		}
	}()
	select {
	case <-ctx.Done():
		return nil
	case <-g.Done():
		return errors.New("the guest has ended")
	}
}

// relay passes one command to the guest; the answer's first byte is '+' or '-'.
func relay(ctx context.Context, g *lab.Guest, conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	line = strings.TrimSuffix(line, "\n")
	var body []byte
	switch line {
	case "pause":
		err = g.Pause(ctx)
	case "resume":
		err = g.Resume(ctx)
	case "reset":
		err = g.Reset(ctx)
	case "console":
		body = []byte(g.Console())
	default:
		body, err = g.Ask(ctx, line)
	}
	if err != nil {
		fmt.Fprintf(conn, "-%v", err)
		return
	}
	conn.Write(append([]byte{'+'}, body...))
}

// ask sends a command to the guest NAME that another labctl booted.
func ask(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: labctl ask NAME COMMAND …; besides the oracle's: pause, resume, reset, console")
	}
	dir, err := findGuest(args[0])
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", filepath.Join(dir, askSocket))
	if err != nil {
		return fmt.Errorf("reach the guest %s: %w", args[0], err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, strings.Join(args[1:], " ")); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if len(answer) == 0 {
		return errors.New("the guest's keeper hung up")
	}
	if answer[0] == '-' {
		return errors.New(string(answer[1:]))
	}
	_, err = os.Stdout.Write(answer[1:])
	return err
}

// findGuest returns the directory of the running guest with this name.
func findGuest(name string) (string, error) {
	names, err := filepath.Glob(filepath.Join(os.TempDir(), "umbra-lab-*", "name"))
	if err != nil {
		return "", err
	}
	for _, path := range names {
		if b, err := os.ReadFile(path); err == nil && string(b) == name {
			return filepath.Dir(path), nil
		}
	}
	return "", fmt.Errorf("no guest %q was booted by labctl", name)
}
