package lab

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// keeperEnv makes the test binary boot a guest and wait, see TestDiesWithParent.
const keeperEnv = "UMBRA_LAB_TEST_KEEPER"

// keeper is what the process does that TestDiesWithParent kills.
func keeper() {
	g, err := Boot(context.Background(), small())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("keeper:", g.PID(), g.Dir())
	<-g.Done()
}

// TestDiesWithParent kills a process that booted a guest, as nothing could clean
// up after: QEMU must end, and the next boot must remove what is left.
func TestDiesWithParent(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), keeperEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(bootTimeout, func() { cmd.Process.Kill() })
	defer timer.Stop()
	var pid int
	var dir string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if n, _ := fmt.Sscanf(lines.Text(), "keeper: %d %s", &pid, &dir); n == 2 {
			break
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	if pid == 0 {
		t.Fatal("the keeper booted no guest")
	}
	for end := time.Now().Add(20 * time.Second); running(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("QEMU, process %d, outlives the process that booted it", pid)
		}
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(dir, old, old); err != nil {
		t.Fatal(err)
	}
	sweep(filepath.Dir(dir))
	if exists(dir) {
		t.Errorf("%s is left", dir)
	}
}

// running tells whether a process is a QEMU that has not ended.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(b), "qemu")
}

// TestKeepRAM boots twice on one RAM file, so that the first boot's remains lie
// under the second.
func TestKeepRAM(t *testing.T) {
	dir, err := os.MkdirTemp(ramParent(), "lab-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c := small()
	c.MemPath = filepath.Join(dir, "ram")
	var ids [2]string
	c.KeepRAM = true
	for i := range ids {
		g, err := Boot(within(t, bootTimeout), c)
		if err != nil {
			t.Fatal(err)
		}
		id, err := g.Ask(within(t, time.Minute), "cat /proc/sys/kernel/random/boot_id")
		if err != nil {
			t.Error(err)
		}
		ids[i] = string(id)
		g.Close()
		if !exists(c.MemPath) {
			t.Fatalf("boot %d: the RAM file to keep is gone", i)
		}
	}
	if ids[0] == ids[1] {
		t.Errorf("two boots have the id %s", ids[0])
	}
	c.KeepRAM = false
	g, err := Boot(within(t, bootTimeout), c)
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	if exists(c.MemPath) {
		t.Error("the RAM file is left")
	}
}
