package dump

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/umbravm/umbra/mem"
)

// machine is a real QEMU without a kernel: testdata/boot.S puts it into long
// mode and halts it, then it is stopped and dumped in every format QEMU writes.
type machine struct {
	dir       string
	ram       []byte // all of its RAM, as QEMU's pmemsave gives it
	data      []byte // what was loaded at dataAddr
	registers string // QEMU's own "info registers -a"
	formats   []string
}

const (
	machineRAM = 16 << 20
	dataAddr   = 0x800000
)

func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

var machineDir string

var theMachine = sync.OnceValues(startMachine)

// testMachine returns the machine that all tests of the package share.
func testMachine(t testing.TB) *machine {
	t.Helper()
	m, err := theMachine()
	if err != nil {
		t.Fatalf("dumping a machine with QEMU: %v", err)
	}
	return m
}

func TestMain(m *testing.M) {
	code := m.Run()
	if machineDir != "" {
		os.RemoveAll(machineDir)
	}
	os.Exit(code)
}

// testData is pages that compress well and pages that do not.
func testData() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for i := range 16 {
		page := bytes.Repeat(fmt.Appendf(nil, "umbra page %04d ", i), mem.PageSize/16)
		if i%2 == 1 {
			for j := range page {
				page[j] = byte(r.Uint32())
			}
		}
		b = append(b, page...)
	}
	return b
}

func startMachine() (_ *machine, err error) {
	dir, err := os.MkdirTemp("", "umbra-dump-test-")
	if err != nil {
		return nil, err
	}
	machineDir = dir
	m := &machine{dir: dir, data: testData()}
	if err := os.WriteFile(m.file("data"), m.data, 0o600); err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd := exec.Command("qemu-system-x86_64", "-accel", "tcg", "-m", "16M", "-smp", "2",
		"-display", "none", "-nodefaults", "-vga", "none",
		"-serial", "file:"+m.file("serial"), "-qmp", "unix:"+m.file("qmp")+",server=on,wait=off",
		"-drive", "file=testdata/boot.bin,format=raw,if=ide,snapshot=on",
		"-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", m.file("data"), dataAddr))
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w; QEMU said %q", err, stderr.String())
		}
	}()
	return m, m.dumpAll()
}

func (m *machine) dumpAll() error {
	deadline := time.Now().Add(60 * time.Second)
	for {
		if b, _ := os.ReadFile(m.file("serial")); string(b) == "U" {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the boot sector did not report within a minute")
		}
		time.Sleep(20 * time.Millisecond)
	}
	q, err := dialQMP(m.file("qmp"), deadline)
	if err != nil {
		return err
	}
	defer q.conn.Close()
	time.Sleep(100 * time.Millisecond) // let it come from the write to its halt
	q.do("stop", nil, nil)
	q.do("human-monitor-command", map[string]any{"command-line": "info registers -a"}, &m.registers)
	var can struct{ Formats []string }
	q.do("query-dump-guest-memory-capability", nil, &can)
	for _, f := range can.Formats {
		if f == "win-dmp" {
			continue
		}
		m.formats = append(m.formats, f)
		q.do("dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + m.file(f), "format": f}, nil)
	}
	q.do("dump-guest-memory", map[string]any{"paging": true, "protocol": "file:" + m.file("paging")}, nil)
	q.do("pmemsave", map[string]any{"val": 0, "size": machineRAM, "filename": m.file("ram")}, nil)
	q.do("quit", nil, nil)
	if q.err != nil {
		return q.err
	}
	m.ram, err = os.ReadFile(m.file("ram"))
	return err
}

// qmp is the little of QEMU's monitor protocol that is needed here. Its first
// error stays.
type qmp struct {
	conn net.Conn
	r    *bufio.Scanner
	err  error
}

func dialQMP(path string, deadline time.Time) (*qmp, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(deadline)
	q := &qmp{conn: conn, r: bufio.NewScanner(conn)}
	q.do("qmp_capabilities", nil, nil)
	return q, q.err
}

func (q *qmp) do(command string, args, result any) {
	if q.err != nil {
		return
	}
	msg := map[string]any{"execute": command}
	if args != nil {
		msg["arguments"] = args
	}
	if q.err = json.NewEncoder(q.conn).Encode(msg); q.err != nil {
		return
	}
	for q.r.Scan() {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if q.err = json.Unmarshal(q.r.Bytes(), &reply); q.err != nil {
			return
		}
		switch {
		case reply.Error != nil:
			q.err = fmt.Errorf("%s: %s", command, reply.Error.Desc)
			return
		case reply.Return != nil:
			if result != nil {
				q.err = json.Unmarshal(reply.Return, result)
			}
			return
		}
	}
	q.err = fmt.Errorf("%s: the monitor hung up: %v", command, q.r.Err())
}

// open opens a dump and closes it when the test ends.
func open(t testing.TB, path string, opts Options) *Source {
	t.Helper()
	s, err := Open(context.Background(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// readAll reads size bytes from addr on, in pieces that straddle pages.
func readAll(t testing.TB, r mem.Reader, addr mem.Phys, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	var reads []mem.Read
	for off := 0; off < size; off += 5000 {
		reads = append(reads, mem.Read{Addr: addr + mem.Phys(off), Buf: b[off:min(off+5000, size)]})
	}
	if err := r.ReadPhys(context.Background(), reads); err != nil {
		t.Fatal(err)
	}
	for _, r := range reads {
		if r.Err != nil || r.N != len(r.Buf) {
			t.Fatalf("read %v: %d of %d bytes: %v", r.Addr, r.N, len(r.Buf), r.Err)
		}
	}
	return b
}
