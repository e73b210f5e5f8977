package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// files is a process with open files of every kind.
func files() error {
	m := newMaker()
	open := func(name, path string, flags int) int {
		fd, err := unix.Open(path, flags, 0o640)
		return m.fd(name, fd, err)
	}
	m.do("directory", func() error { return os.MkdirAll("/tmp/files", 0o755) })
	const create = unix.O_RDWR | unix.O_CREAT
	regular := open("regular", "/tmp/files/regular", create)
	m.do("offset", func() error {
		if _, err := unix.Write(regular, make([]byte, 20000)); err != nil {
			return err
		}
		_, err := unix.Seek(regular, 12345, unix.SEEK_SET)
		return err
	})
	open("flags", "/tmp/files/flags", unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_SYNC)
	open("space", "/tmp/files/with space", create)
	open("newline", "/tmp/files/with\nnewline", create)
	open("backslash", "/tmp/files/with\\back\\slash", create)
	open("utf8", "/tmp/files/ünïcødé→", create)
	open("not utf8", "/tmp/files/\xff\xfe", create)
	open("deleted", "/tmp/files/deleted", create)
	m.do("delete", func() error { return os.Remove("/tmp/files/deleted") })
	open("said to be deleted", "/tmp/files/alive (deleted)", create)
	open("null", "/dev/null", unix.O_RDWR)
	open("console", "/dev/console", unix.O_WRONLY|unix.O_NOCTTY)
	open("directory", "/tmp/files", unix.O_RDONLY|unix.O_DIRECTORY)
	open("path only", "/tmp/files/regular", unix.O_PATH)
	open("no name", "/tmp/files", unix.O_RDWR|unix.O_TMPFILE)
	open("proc", "/proc/1/status", unix.O_RDONLY)
	open("sysfs", "/sys/kernel/uevent_seqnum", unix.O_RDONLY)
	open("namespace", "/proc/self/ns/net", unix.O_RDONLY)
	m.do("fifo", func() error { return unix.Mkfifo("/tmp/files/fifo", 0o600) })
	open("fifo", "/tmp/files/fifo", unix.O_RDWR)
	pipes(m)
	locks(m, regular)
	anonymous(m)
	return m.stay()
}

// pipes opens two pipes, one with data waiting.
func pipes(m *maker) {
	for _, name := range []string{"pipe", "full pipe"} {
		var p [2]int
		err := unix.Pipe2(p[:], 0)
		m.fd(name+" out", p[0], err)
		m.fd(name+" in", p[1], err)
		if name == "full pipe" {
			m.do(name, func() error { _, err := unix.Write(p[1], make([]byte, 5000)); return err })
		}
	}
}

// locks puts a lock of each kind on a file.
func locks(m *maker, fd int) {
	other, err := unix.Open("/tmp/files/with space", unix.O_RDWR, 0)
	m.fd("lock", other, err)
	m.do("flock", func() error { return unix.Flock(other, unix.LOCK_EX) })
	m.do("POSIX lock", func() error {
		return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 50})
	})
	m.do("OFD lock", func() error {
		return unix.FcntlFlock(uintptr(other), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 5})
	})
}

// anonymous opens the kinds of file that have no place in a file system.
func anonymous(m *maker) {
	event, err := unix.Eventfd(42, unix.EFD_SEMAPHORE)
	m.fd("eventfd", event, err)
	poll, err := unix.EpollCreate1(0)
	m.fd("epoll", poll, err)
	m.do("watch", func() error {
		return unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLET, Fd: 77})
	})
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0)
	m.fd("timerfd", timer, err)
	m.do("timer", func() error {
		return unix.TimerfdSettime(timer, 0, &unix.ItimerSpec{
			Interval: unix.Timespec{Sec: 3600}, Value: unix.Timespec{Sec: 1 << 30, Nsec: 5}}, nil)
	})
	signals, err := unix.Signalfd(-1, &unix.Sigset_t{Val: [16]uint64{1<<9 | 1<<11}}, 0)
	m.fd("signalfd", signals, err)
	notify, err := unix.InotifyInit1(0)
	m.fd("inotify", notify, err)
	m.do("inotify", func() error {
		_, err := unix.InotifyAddWatch(notify, "/tmp/files", unix.IN_CREATE|unix.IN_DELETE)
		return err
	})
	mem, err := unix.MemfdCreate("umbra memfd", unix.MFD_ALLOW_SEALING)
	m.fd("memfd", mem, err)
	m.do("memfd", func() error { return unix.Ftruncate(mem, 7777) })
	pid, err := unix.PidfdOpen(1, 0)
	m.fd("pidfd", pid, err)
	fan, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF, unix.O_RDONLY)
	m.maybe("fanotify", fan, err)
}

// manyFDs is how many descriptors the process of manyFiles holds besides its own.
const manyFDs = 700

// manyFiles is a process whose descriptor table has grown, with gaps in it.
func manyFiles() error {
	m := newMaker()
	m.do("limit", func() error {
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4096, Max: 4096})
	})
	m.do("open", func() error {
		null, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		for i := range manyFDs {
			if err := unix.Dup3(null, 100+2*i, 0); err != nil {
				return fmt.Errorf("descriptor %d: %w", 100+2*i, err)
			}
		}
		return nil
	})
	m.info["fds"] = manyFDs
	return m.stay()
}
