package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
)

// TestTinyELF runs the program that ends at once here, where a kernel can tell
// whether the image is well made.
func TestTinyELF(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exit")
	if err := os.WriteFile(path, tinyELF(exitCode), 0o755); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := exec.Command(path).Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("the program ended with %v, want exit status 7", err)
	}
	for _, code := range [][]byte{pauseCode, vforkCode} {
		f, err := elf.NewFile(bytes.NewReader(tinyELF(code)))
		if err != nil {
			t.Fatal(err)
		}
		image := make([]byte, len(code))
		if _, err := f.Progs[0].ReadAt(image, int64(f.Entry-f.Progs[0].Vaddr)); err != nil || !bytes.Equal(image, code) {
			t.Errorf("at the entry lies %x, %v; want %x", image, err, code)
		}
	}
}

func TestParseParams(t *testing.T) {
	got, err := parseParams("console=ttyS0 umbra.procs=10 umbra.socks=5 umbra.state=0 umbra.load=virtio_net,e1000 umbra.oracle=ttyS1\n")
	want := params{oracle: "ttyS1", procs: 10, socks: 5, load: []string{"virtio_net", "e1000"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"umbra.procs=x", "umbra.unknown=1"} {
		if _, err := parseParams(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestPlan checks that what the state is made of can be started and told apart.
func TestPlan(t *testing.T) {
	names := map[string]bool{}
	for _, p := range plan() {
		if roles[p.role] == nil {
			t.Errorf("%s: no role %q", p.name, p.role)
		}
		if names[p.name] {
			t.Errorf("two processes are named %q", p.name)
		}
		names[p.name] = true
	}
}

func TestReply(t *testing.T) {
	for _, c := range []struct {
		pack bool
		body string
		err  error
		want string
	}{
		{false, "abc", nil, "ok raw 3\nabc"},
		{true, "abc", nil, "ok raw 3\nabc"},
		{false, "abc", errors.New("no"), "err raw 2\nno"},
	} {
		var b bytes.Buffer
		if err := reply(&b, c.pack, []byte(c.body), c.err); err != nil || b.String() != c.want {
			t.Errorf("%+v: %q, %v", c, b.String(), err)
		}
	}
	var b bytes.Buffer
	if err := reply(&b, true, make([]byte, 100000), nil); err != nil || b.Len() > 2000 {
		t.Errorf("100000 zeros become %d bytes, %v", b.Len(), err)
	}
}
