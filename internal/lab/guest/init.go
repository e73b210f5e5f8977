package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// runInit is what process 1 does: it returns only when it fails, and the kernel
// panics then.
func runInit() error {
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
	if params.oracle != "none" {
		if _, err := spawn(roleProcess("oracle"), params); err != nil {
			return err
		}
	}
	fmt.Println("umbra-lab: ready")
	reap()
	return nil
}

// reap waits for orphans for ever.
func reap() {
	for {
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(-1, &ws, 0, nil); err == syscall.ECHILD {
			unix.Pause()
		}
	}
}

// mountAll mounts the kernel's file systems at their usual places.
func mountAll() error {
	for _, m := range []struct{ fs, dir, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", "mode=0755"},
		{"devpts", "/dev/pts", "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"tmpfs", "/run", "mode=0755,size=64m"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", ""},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, unix.MS_NOSUID|unix.MS_NODEV, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.dir, err)
		}
	}
	// devtmpfs must allow the devices it holds.
	return unix.Mount("", "/dev", "", unix.MS_REMOUNT|unix.MS_NOSUID, "mode=0755")
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
