package qemu

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestTargets(t *testing.T) {
	v := startVM(t, vmOptions{args: []string{"-uuid", "2f1e6f8e-0d0a-4bfa-9d28-6c9f2b7a1c11", "-m", "64", "-smp", "cpus=2"}})
	twin := startVM(t, vmOptions{noQMP: true, args: []string{"-name", v.name, "-m", "64"}})
	for _, target := range []string{strconv.Itoa(v.pid()), v.socket} {
		s, err := Open(t.Context(), target)
		if err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		if s.PID() != v.pid() || s.Info().Name != v.name || s.Info().CPUs != 2 {
			t.Errorf("%s: pid %d, %+v", target, s.PID(), s.Info())
		}
		s.Close()
	}
	for _, tc := range []struct {
		target string
		err    error
		say    []string
	}{
		{v.name, ErrAmbiguous, []string{strconv.Itoa(v.pid()), strconv.Itoa(twin.pid())}},
		{"nobody", ErrNoMachine, []string{v.name}},
		{"", ErrNoMachine, []string{v.name}},
		{strconv.Itoa(os.Getpid()), ErrNotQEMU, []string{filepath.Base(os.Args[0])}},
		{"4194999", ErrNoMachine, []string{"no process"}},
		{filepath.Join(t.TempDir(), "none"), ErrNoMachine, nil},
		{t.TempDir(), ErrNoMachine, []string{"not a socket"}},
	} {
		s, err := Open(t.Context(), tc.target)
		if err == nil {
			s.Close()
		}
		var te *TargetError
		if !errors.Is(err, tc.err) || !errors.As(err, &te) {
			t.Errorf("%s: %v, want %v", tc.target, err, tc.err)
			continue
		}
		for _, say := range tc.say {
			if !strings.Contains(te.Error()+te.HintLine(), say) {
				t.Errorf("%s: %q, hint %q: neither says %q", tc.target, te, te.Hint, say)
			}
		}
	}
	listed(t, v, twin)
}

func listed(t *testing.T, v, twin *vm) {
	ms, err := List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, m := range ms {
		switch m.PID {
		case v.pid():
			found++
			want := Machine{Name: v.name, PID: v.pid(), UUID: "2f1e6f8e-0d0a-4bfa-9d28-6c9f2b7a1c11", MemoryBytes: 64 * mib,
				CPUs: 2, Accel: "tcg", Memory: "process memory", QMP: "available"}
			if m != want {
				t.Errorf("%+v, want %+v", m, want)
			}
		case twin.pid():
			found++
			if m.QMP != "none" || m.Memory != "process memory" || m.Problem != "" {
				t.Errorf("%+v", m)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d of 2 machines are listed: %+v", found, ms)
	}
}

// TestPermission: without the right to look into the process, the error says so
// and List still lists it.
func TestPermission(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root, to drop from")
	}
	v := startVM(t, vmOptions{args: []string{"-m", "64"}})
	out := asNobody(t, "open", strconv.Itoa(v.pid()))
	if !strings.Contains(out, "no permission") || !strings.Contains(out, "CAP_SYS_PTRACE") || !strings.Contains(out, "setcap") {
		t.Errorf("open as nobody: %s", out)
	}
	var ms []Machine
	if err := json.Unmarshal([]byte(asNobody(t, "list", "")), &ms); err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if m.PID == v.pid() {
			if m.Name != v.name || m.Memory != "" || !strings.Contains(m.Problem, "CAP_SYS_PTRACE") {
				t.Errorf("as nobody: %+v", m)
			}
			return
		}
	}
	t.Errorf("as nobody the machine is not listed: %+v", ms)
}

// asNobody runs helper in a process of this test binary, as user 65534.
func asNobody(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(copyExecutable(t))
	cmd.Env = []string{helperEnv + "=" + strings.Join(args, " ")}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// copyExecutable puts this test binary where everybody may run it.
func copyExecutable(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "umbra-qemu-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe := filepath.Join(dir, "helper")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(exe, b, 0o755)); err != nil {
		t.Fatal(err)
	}
	return exe
}
