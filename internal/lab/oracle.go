package lab

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
)

// answerMax bounds one answer of the oracle, in bytes, packed or unpacked.
const answerMax = 512 << 20

// oracle is the host's end of the channel to the guest program. A command is a
// line; an answer is a line "ok ENCODING LENGTH" or "err ENCODING LENGTH" and
// that many bytes. ENCODING is "raw" or "gzip".
type oracle struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
	err  error // why the channel cannot be used any more
}

func newOracle(conn net.Conn) *oracle {
	return &oracle{conn: conn, in: bufio.NewReaderSize(conn, 1<<16)}
}

// An AnswerError is what the guest's kernel or program said when a command failed.
type AnswerError struct {
	Command string
	Message string
}

func (e *AnswerError) Error() string { return fmt.Sprintf("guest: %s: %s", e.Command, e.Message) }

// ask sends a command and returns the answer. After a failure of the channel
// itself, a time-out for instance, no more commands are taken: a late answer
// would be taken for the next one's.
func (o *oracle) ask(ctx context.Context, command string) ([]byte, error) {
	if strings.ContainsAny(command, "\n\x00") {
		return nil, fmt.Errorf("ask the guest %q: a command is one line", command)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return nil, fmt.Errorf("ask the guest %q: the channel failed before: %w", command, o.err)
	}
	setDeadline(ctx, o.conn)
	if _, err := io.WriteString(o.conn, command+"\n"); err != nil {
		o.err = err
		return nil, fmt.Errorf("ask the guest %q: %w", command, err)
	}
	ok, body, err := readAnswer(o.in)
	if err != nil {
		o.err = err
		return nil, fmt.Errorf("ask the guest %q: %w", command, err)
	}
	if !ok {
		return nil, &AnswerError{Command: command, Message: string(body)}
	}
	return body, nil
}

// readAnswer reads one answer; ok is false for an "err" one.
func readAnswer(r *bufio.Reader) (ok bool, body []byte, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return false, nil, fmt.Errorf("read the answer: %w", err)
	}
	var status, encoding string
	var n int64
	if _, err := fmt.Sscanf(string(line), "%s %s %d\n", &status, &encoding, &n); err != nil {
		return false, nil, fmt.Errorf("malformed answer %q", line)
	}
	if status != "ok" && status != "err" || n < 0 || n > answerMax {
		return false, nil, fmt.Errorf("malformed answer %q", line)
	}
	// Grows with what really comes, not with what is announced.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, n); err != nil {
		return false, nil, fmt.Errorf("read an answer of %d bytes: %w", n, err)
	}
	body = b.Bytes()
	switch encoding {
	case "raw":
	case "gzip":
		if body, err = gunzip(body); err != nil {
			return false, nil, fmt.Errorf("unpack the answer: %w", err)
		}
	default:
		return false, nil, fmt.Errorf("malformed answer: encoding %q", encoding)
	}
	return status == "ok", body, nil
}

func gunzip(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(z, answerMax+1))
	if err == nil && len(out) > answerMax {
		err = errors.New("too long")
	}
	return out, err
}

// Ask sends a command to the guest's oracle and returns its answer. The guest
// must be running. Without a deadline in ctx a minute is waited for the answer.
//
//	cat PATH        content of a file
//	readlink PATH   target of a symbolic link
//	ls DIR          names in a directory, one a line
//	state           JSON: what the guest program made, see State
//	proc [PIDS [NAMES]]  an archive of /proc, see Proc
//	exec ROLE       start another process in a role; its JSON as in state
//	kill PID SIGNAL send a signal, by number
//	quit            end the oracle: no more answers
func (g *Guest) Ask(ctx context.Context, command string) ([]byte, error) {
	if g.oracle == nil {
		return nil, errors.New("this guest was booted without an oracle")
	}
	return g.oracle.ask(ctx, command)
}
