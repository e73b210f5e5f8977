package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// storms are what the machine is kept busy with, each by a process of its own.
var storms = map[string]func(i int) error{
	"processes": stormProcesses,
	"sockets":   stormSockets,
	"files":     stormFiles,
}

// storm starts processes that make and end processes, threads, sockets, files,
// areas, mounts, control groups and namespaces as fast as they can, for ever.
func storm() error {
	m := newMaker()
	for name := range storms {
		m.do(name, func() error {
			p := roleProcess("stormer")
			p.env = []string{"UMBRA_HOW=" + name}
			made, err := spawn(p)
			m.info[name] = made.PID
			return err
		})
	}
	return m.stay()
}

// stormer is one of them.
func stormer() error {
	debug.SetGCPercent(100) // unlike other roles it does not stand still
	run, ok := storms[os.Getenv("UMBRA_HOW")]
	if !ok {
		return fmt.Errorf("unknown storm %q", os.Getenv("UMBRA_HOW"))
	}
	if err := setComm("storm-" + os.Getenv("UMBRA_HOW")); err != nil {
		return err
	}
	if err := run(0); err != nil {
		return err
	}
	if err := ready(nil); err != nil {
		return err
	}
	for i := 1; ; i++ {
		if err := run(i); err != nil {
			return err
		}
	}
}

func stormProcesses(i int) error {
	attr := &syscall.SysProcAttr{}
	switch i % 16 {
	case 1:
		attr.Cloneflags = unix.CLONE_NEWNET
	case 5:
		attr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	case 9:
		attr.Cloneflags = unix.CLONE_NEWPID
	}
	args := []string{fmt.Sprintf("storm-%d", i), "with", "arguments"}
	pid, err := startTiny(tinyDir+"/exit", args, attr)
	if err != nil {
		return err
	}
	lasting, err := startTiny(tinyDir+"/idle", args, nil)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { // a thread that ends with it
		runtime.LockOSThread()
		close(done)
	}()
	<-done
	if err := syscall.Kill(lasting, syscall.SIGKILL); err != nil {
		return err
	}
	for _, p := range []int{pid, lasting} {
		if _, err := unix.Wait4(p, nil, 0, nil); err != nil {
			return err
		}
	}
	return nil
}

func stormSockets(i int) error {
	l, err := listen("127.0.0.1:0", 4)
	if err != nil {
		return err
	}
	fds := []int{l}
	defer func() {
		for k := range fds { // in another order each time
			unix.Close(fds[(i+k)%len(fds)])
		}
	}()
	keep := func(fd int, err error) int {
		if err == nil {
			fds = append(fds, fd)
		}
		return fd
	}
	at, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	c := keep(unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0))
	if err := unix.Connect(c, at); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	s, _, err := unix.Accept(l)
	if keep(s, err); err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	// Without lingering, or the ports of closed connections would run out.
	linger := &unix.Linger{Onoff: 1}
	if err := unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, linger); err != nil {
		return err
	}
	keep(bound("127.0.0.1:0", unix.SOCK_DGRAM, 0))
	keep(bound("[::1]:0", unix.SOCK_DGRAM, 0))
	keep(bound("127.0.0.1:0", unix.SOCK_RAW, unix.IPPROTO_ICMP))
	u := keep(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0))
	if err := unix.Bind(u, &unix.SockaddrUnix{Name: fmt.Sprintf("@storm-%d", i)}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	keep(pair[0], err)
	keep(pair[1], err)
	keep(unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE))
	keep(unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0))
	return nil
}

func stormFiles(i int) error {
	name := fmt.Sprintf("/tmp/storm-%d", i)
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(3 * 4096); err != nil {
		return err
	}
	area, err := unix.Mmap(int(f.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := unix.Mprotect(area[:4096], unix.PROT_READ); err != nil { // one area becomes two
		return err
	}
	if err := os.Rename(name, name+" moved"); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	memfd, err := unix.MemfdCreate("storm", 0)
	if err != nil {
		return err
	}
	if i%4 == 0 {
		err = stormDirectories(i)
	}
	for _, end := range []func() error{r.Close, w.Close, func() error { return unix.Close(memfd) },
		func() error { return os.Remove(name + " moved") }, func() error { return unix.Munmap(area) }} {
		if e := end(); err == nil {
			err = e
		}
	}
	return err
}

// stormDirectories makes and removes a mount and a control group, and says so in the log.
func stormDirectories(i int) error {
	dir := "/tmp/storm mount"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("storm", dir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	group := fmt.Sprintf("/sys/fs/cgroup/storm-%d", i)
	if err := os.Mkdir(group, 0o755); err != nil {
		return err
	}
	if err := os.Remove(group); err != nil {
		return err
	}
	return os.WriteFile("/dev/kmsg", fmt.Appendf(nil, "<7>storm %d", i), 0)
}
