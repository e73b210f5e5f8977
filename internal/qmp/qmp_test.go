package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\r\n"

// serve listens on a fresh socket and answers every line a client sends with what
// answer returns for its command and id.
func serve(t *testing.T, hello string, answer func(cmd, id string) string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// One client at a time, as QEMU does.
			fmt.Fprint(c, hello)
			for sc := bufio.NewScanner(c); sc.Scan(); {
				var req struct{ Execute, ID string }
				if json.Unmarshal(sc.Bytes(), &req) != nil {
					break
				}
				if req.Execute == "qmp_capabilities" {
					fmt.Fprintf(c, `{"return": {}, "id": %q}`+"\r\n", req.ID)
					continue
				}
				fmt.Fprint(c, answer(req.Execute, req.ID))
			}
			c.Close()
		}
	}()
	return path
}

func TestExecute(t *testing.T) {
	path := serve(t, greeting, func(cmd, id string) string {
		switch cmd {
		case "good": // an event, a stale answer, then a pretty-printed answer
			return `{"event":"STOP","timestamp":{}}` + "\n" + `{"return":1,"id":"old"}` + "\n" +
				"{\n  \"return\": {\n \"s\": \"a}\\\"{\"},\n\"id\": \"" + id + "\"}\n"
		case "bad":
			return fmt.Sprintf(`{"error":{"class":"CommandNotFound","desc":"no such thing"},"id":%q}`, id)
		}
		return "]"
	})
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Version() != (Version{7, 2, 22}) {
		t.Errorf("version %v", c.Version())
	}
	var got struct{ S string }
	if err := c.Execute(t.Context(), "good", nil, &got); err != nil || got.S != `a}"{` {
		t.Errorf("good: %+v, %v", got, err)
	}
	var refusal *Error
	if err := c.Execute(t.Context(), "bad", nil, nil); !errors.As(err, &refusal) || refusal.Desc != "no such thing" {
		t.Errorf("bad: %v", err)
	}
	if err := c.Execute(t.Context(), "good", nil, &got); err != nil {
		t.Errorf("a refusal broke the connection: %v", err)
	}
	if err := c.Execute(t.Context(), "garbage", nil, nil); err == nil {
		t.Error("garbage was taken for an answer")
	}
	if err := c.Execute(t.Context(), "good", nil, nil); !errors.Is(err, ErrBroken) {
		t.Errorf("after garbage: %v, want ErrBroken", err)
	}
	if pid, err := c.Peer(); err != nil || pid != os.Getpid() {
		t.Errorf("peer %d, %v", pid, err)
	}
}

func TestCancelWakesCommand(t *testing.T) {
	path := serve(t, greeting, func(string, string) string { return "" })
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := c.Execute(ctx, "silence", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

func TestDialBusy(t *testing.T) {
	path := serve(t, greeting, nil)
	first, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), path); !errors.Is(err, ErrBusy) {
		t.Errorf("second client: %v, want ErrBusy", err)
	}
	if other := serve(t, greeting, nil); Held(other) || !Held(path) {
		t.Errorf("a socket of the same name elsewhere is held: %v; this one: %v", Held(other), Held(path))
	}
	first.Close()
	// The server may still be letting go of the first client.
	for range 20 {
		var second *Client
		if second, err = Dial(t.Context(), path); err == nil {
			second.Close()
			return
		}
	}
	t.Errorf("after the first client left: %v", err)
}

func TestDialErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Dial(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	path := serve(t, "SSH-2.0\n", nil)
	if _, err := Dial(t.Context(), path); err == nil || !strings.Contains(err.Error(), "not a QMP socket") {
		t.Errorf("another protocol: %v", err)
	}
}

func TestDialLongPath(t *testing.T) {
	path := serve(t, greeting, nil)
	long := filepath.Join(filepath.Dir(path), strings.Repeat("d", 120))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, filepath.Join(long, "q")); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(t.Context(), filepath.Join(long, "q"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"return":{"a":["}",{"b":"\\\""}]},"id":"umbra-1"}`))
	f.Add([]byte(`{"error":{"class":"GenericError","desc":"x"}}`))
	f.Add([]byte("{{{{\""))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := readMessage(bufio.NewReader(bytes.NewReader(data)))
		if (m == nil) == (err == nil) {
			t.Fatalf("message %v and error %v", m, err)
		}
		obj, err := readObject(bufio.NewReader(bytes.NewReader(data)), 64)
		if (obj == nil) == (err == nil) || len(obj) > 64 {
			t.Fatalf("%d bytes and error %v", len(obj), err)
		}
	})
}

// TestCancelLate cancels a command's context while its answer arrives: a command that
// got its answer must not cut off the next one, which has a context of its own.
func TestCancelLate(t *testing.T) {
	path := serve(t, greeting, func(_, id string) string { return `{"return": {}, "id": "` + id + `"}` + "\n" })
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Close() }()
	answered := 0
	for i := range 3000 {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for range i % 50 * 20 {
				_ = ctx.Err()
			}
			cancel()
		}()
		err := c.Execute(ctx, "one", nil, nil)
		cancel()
		if err != nil {
			c.Close()
			c = redial(t, path)
			continue
		}
		answered++
		if err := c.Execute(t.Context(), "two", nil, nil); err != nil {
			t.Fatalf("after %d: the command behind one that was answered: %v", i, err)
		}
	}
	t.Logf("%d answered before they were cancelled", answered)
}

// redial connects to a server that may not have noticed yet that the last client left.
func redial(t *testing.T, path string) *Client {
	t.Helper()
	for range 50 {
		c, err := Dial(t.Context(), path)
		if err == nil {
			return c
		}
		if !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
	}
	t.Fatal("the socket stays busy")
	return nil
}
