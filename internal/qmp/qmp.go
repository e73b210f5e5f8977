// Package qmp speaks QEMU's machine protocol: one JSON message per command and
// answer over a Unix socket. It mirrors docs/interop/qmp-spec of QEMU.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

const (
	// MaxMessage is the longest message accepted from a peer, in bytes.
	MaxMessage = 16 << 20

	// defaultTimeout bounds a command whose context has no deadline.
	defaultTimeout = 10 * time.Second

	// closeWait is how long Close waits for QEMU's own close.
	closeWait = 2 * time.Second

	// maxSkipped is how many events and stale answers may precede an answer.
	maxSkipped = 4096
)

var (
	// ErrBusy: QEMU listens, but another client holds the socket, which serves one
	// client at a time.
	ErrBusy = errors.New("another client holds the QMP socket")

	// ErrNoAnswer: QEMU listens and nobody seems to hold the socket, yet no
	// greeting comes: the process is stopped or overloaded.
	ErrNoAnswer = errors.New("QEMU does not answer on the QMP socket")

	// ErrBroken: an earlier command was cut off in the middle, so that answers can
	// no longer be told apart. Dial again.
	ErrBroken = errors.New("QMP connection is unusable after an earlier failure")
)

// Error is QEMU's own refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return "QEMU says: " + e.Desc }

// Version is QEMU's version as its greeting tells it.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

// message is any message QEMU sends: greeting, answer, error or event.
type message struct {
	Greeting *struct {
		Version struct {
			QEMU Version `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
	Event  string          `json:"event"`
	ID     string          `json:"id"`
}

// Client is one QMP session. It is safe for use by several goroutines; commands
// take turns.
type Client struct {
	mu      sync.Mutex
	conn    *net.UnixConn
	r       *bufio.Reader
	nextID  uint64
	broken  error
	version Version
}

// Version is the version of the QEMU behind the socket.
func (c *Client) Version() Version { return c.version }

// Close ends the session. It waits a moment until QEMU has let go of it as well, so
// that whoever dials next is not told that the socket is busy.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken == nil && c.conn.CloseWrite() == nil {
		c.conn.SetDeadline(time.Now().Add(closeWait))
		for range maxSkipped {
			if _, err := readObject(c.r, MaxMessage); err != nil {
				break
			}
		}
	}
	return c.conn.Close()
}

// Execute runs cmd with args (nil, or what marshals to a JSON object) and
// unmarshals the answer into result unless that is nil. A refusal is an *Error.
// Without a deadline in ctx it takes 10 seconds at most.
func (c *Client) Execute(ctx context.Context, cmd string, args, result any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ret, err := c.execute(ctx, cmd, args)
	if err != nil {
		return fmt.Errorf("QMP command %s: %w", cmd, err)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(ret, result); err != nil {
		return fmt.Errorf("QMP command %s: unexpected answer: %w", cmd, err)
	}
	return nil
}

// HMP runs a line of the human monitor and returns what it prints. The human
// monitor tells its errors as text too: the caller must know the good answer.
func (c *Client) HMP(ctx context.Context, line string) (string, error) {
	var out string
	args := map[string]string{"command-line": line}
	if err := c.Execute(ctx, "human-monitor-command", args, &out); err != nil {
		return "", fmt.Errorf("monitor command %q: %w", line, err)
	}
	return out, nil
}

// execute sends one command and waits for the answer that carries its id.
func (c *Client) execute(ctx context.Context, cmd string, args any) (json.RawMessage, error) {
	if c.broken != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, c.broken)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.nextID++
	id := "umbra-" + strconv.FormatUint(c.nextID, 10)
	req, err := json.Marshal(struct {
		Execute string `json:"execute"`
		Args    any    `json:"arguments,omitempty"`
		ID      string `json:"id"`
	}{cmd, args, id})
	if err != nil {
		return nil, err
	}
	m, err := c.exchange(ctx, append(req, '\n'), id)
	if err != nil {
		c.broken = err
		return nil, err
	}
	if m.Error != nil {
		return nil, m.Error
	}
	return m.Return, nil
}

// exchange writes req, when there is one, and reads up to the message with id.
// An empty id stands for the greeting.
func (c *Client) exchange(ctx context.Context, req []byte, id string) (*message, error) {
	deadline := time.Now().Add(defaultTimeout)
	if d, ok := ctx.Deadline(); ok {
		deadline = d
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	// A deadline in the past wakes a read that is under way.
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetDeadline(time.Unix(1, 0))
		close(cut)
	})
	defer func() {
		if !stop() {
			<-cut // or it would cut off the next command, whose context may be another
		}
	}()
	m, err := c.roundTrip(req, id)
	if err == nil {
		return m, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	return nil, err
}

func (c *Client) roundTrip(req []byte, id string) (*message, error) {
	if len(req) > 0 {
		if _, err := c.conn.Write(req); err != nil {
			return nil, err
		}
	}
	for range maxSkipped {
		m, err := readMessage(c.r)
		if err != nil {
			return nil, err
		}
		switch {
		case id == "" && m.Greeting != nil:
			return m, nil
		case id != "" && m.ID == id && (m.Return != nil) != (m.Error != nil):
			return m, nil
		case m.Error != nil && m.ID == "":
			// QEMU could not even parse what it was sent; no id comes back.
			return nil, m.Error
		}
	}
	return nil, fmt.Errorf("no answer among %d messages", maxSkipped)
}
