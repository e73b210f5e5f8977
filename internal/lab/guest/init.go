package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// runInit is what process 1 does. It does not end when it fails: the kernel's
// panic would bury the reason on the console.
func runInit() error {
	if err := setUp(); err != nil {
		fmt.Printf("umbra-lab: failed: %v\n", err)
	}
	reap()
	return nil
}

// setUp makes the guest's state and says that it is ready.
func setUp() error {
	if err := mountAll(); err != nil {
		return err
	}
	params, err := readParams()
	if err != nil {
		return err
	}
	if err := loadModules(params); err != nil {
		return err
	}
	if err := makeState(params); err != nil {
		return err
	}
	if params.oracle != "none" {
		if _, err := spawn(roleProcess("oracle")); err != nil {
			return err
		}
	}
	fmt.Println("umbra-lab: ready")
	return nil
}

// reap waits for orphans for ever.
func reap() {
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err == unix.ECHILD {
			unix.Pause()
		}
	}
}

// mountAll mounts the kernel's file systems at their usual places.
func mountAll() error {
	const strict = unix.MS_NOSUID | unix.MS_NODEV
	for _, m := range []struct {
		fs, dir, data string
		flags         uintptr
	}{
		{"proc", "/proc", "", strict | unix.MS_NOEXEC},
		{"sysfs", "/sys", "", strict | unix.MS_NOEXEC},
		{"devtmpfs", "/dev", "mode=0755", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "mode=0620,ptmxmode=0666", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "mode=1777", strict},
		{"tmpfs", "/run", "mode=0755,size=64m", strict},
		{"tmpfs", "/tmp", "mode=1777", strict | unix.MS_RELATIME},
		{"cgroup2", "/sys/fs/cgroup", "", strict | unix.MS_NOEXEC},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.dir, err)
		}
	}
	return nil
}

// loadModules loads the modules the guest's devices need, and some to be seen.
func loadModules(p params) error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	skip := map[string]bool{"virtio_net": true, "net_failover": true, "failover": true, "e1000": true}
	for _, name := range p.load {
		delete(skip, name)
		if name == "virtio_net" {
			delete(skip, "failover")
			delete(skip, "net_failover")
		}
	}
	for name := range strings.FieldsSeq(string(order)) {
		if skip[name] {
			continue
		}
		if err := loadModule("/modules/" + name + ".ko"); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if err == unix.EEXIST {
		return nil
	}
	return err
}
