package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"
)

// monitor is the lab's own QMP connection, so that the socket of Guest.QMPPath
// stays free for what is tested.
type monitor struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
}

// newMonitor reads the greeting on conn and leaves the negotiation mode.
func newMonitor(ctx context.Context, conn net.Conn) (*monitor, error) {
	m := &monitor{conn: conn, in: bufio.NewReader(conn)}
	setDeadline(ctx, conn)
	if _, err := m.in.ReadSlice('\n'); err != nil {
		return nil, fmt.Errorf("read QEMU's greeting: %w", err)
	}
	return m, m.execute(ctx, "qmp_capabilities")
}

// execute runs a command that takes no arguments and gives no result.
func (m *monitor) execute(ctx context.Context, command string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	setDeadline(ctx, m.conn)
	if err := json.NewEncoder(m.conn).Encode(map[string]string{"execute": command}); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	for {
		line, err := m.in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("QMP %s: %w", command, err)
		}
		var reply struct {
			Event  string
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			return fmt.Errorf("QMP %s: %w", command, err)
		}
		switch {
		case reply.Error != nil:
			return fmt.Errorf("QMP %s: %s", command, reply.Error.Desc)
		case reply.Return != nil:
			return nil
		}
	}
}

// setDeadline bounds what is done on conn by ctx, and by a minute.
func setDeadline(ctx context.Context, conn net.Conn) {
	t := time.Now().Add(time.Minute)
	if d, ok := ctx.Deadline(); ok {
		t = d
	}
	conn.SetDeadline(t)
}
