package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// logRecords is a process that fills the kernel's log until its ring buffer has
// wrapped, with records of every kind user space can write.
func logRecords() error {
	m := newMaker()
	m.do("no rate limit", func() error { return os.WriteFile("/proc/sys/kernel/printk_devkmsg", []byte("on\n"), 0) })
	fd, err := unix.Open("/dev/kmsg", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	m.fd("kmsg", fd, err)
	m.do("write", func() error {
		for i := range 4000 {
			// A facility each in turn; debug level, which the console leaves out.
			text := fmt.Sprintf("<%d>umbra %d: %s", i%24<<3|7, i, strings.Repeat("x", i*7%300))
			switch i % 10 {
			case 3:
				text += "\nsecond line\n\nfourth line"
			case 5:
				text += "\ttab, back\\slash, \x01\x7f, ü, \xff"
			case 7:
				text = fmt.Sprintf("<%d>", i%24<<3|7) // nothing
			}
			if _, err := unix.Write(fd, []byte(text+"\n")); err != nil {
				return err
			}
		}
		return nil
	})
	return m.stay()
}

// cgroup1 is a process in a group of a named v1 hierarchy.
func cgroup1() error {
	m := newMaker()
	const dir = "/run/cgroup1"
	m.do("mount", func() error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		return unix.Mount("cgroup", dir, "cgroup", 0, "none,name=umbra")
	})
	m.do("group", func() error { return os.MkdirAll(dir+"/outer/inner group", 0o755) })
	m.do("move", func() error {
		return os.WriteFile(dir+"/outer/inner group/cgroup.procs", []byte(fmt.Sprint(os.Getpid())), 0)
	})
	return m.stay()
}
