package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// idle is a process that does nothing, with what its environment asks for:
// UMBRA_COMM a name, UMBRA_NICE a nice value, UMBRA_IDS real, effective and saved
// user and group ids, UMBRA_POLICY a scheduling policy and priority.
func idle() error {
	m := newMaker()
	if v, ok := os.LookupEnv("UMBRA_NICE"); ok {
		m.do("nice", func() error {
			n, err := strconv.Atoi(v)
			if err != nil {
				return err
			}
			return unix.Setpriority(unix.PRIO_PROCESS, 0, n)
		})
	}
	if v, ok := os.LookupEnv("UMBRA_POLICY"); ok {
		m.do("policy", func() error {
			var attr unix.SchedAttr
			attr.Size = unix.SizeofSchedAttr
			if _, err := fmt.Sscan(v, &attr.Policy, &attr.Priority); err != nil {
				return err
			}
			return unix.SchedSetAttr(0, &attr, 0)
		})
	}
	if v, ok := os.LookupEnv("UMBRA_IDS"); ok {
		m.do("ids", func() error { return setIDs(v) })
	}
	if v, ok := os.LookupEnv("UMBRA_COMM"); ok {
		m.do("comm", func() error { return setComm(v) })
	}
	return m.stay()
}

// setIDs takes "ruid euid suid rgid egid sgid".
func setIDs(v string) error {
	var u [6]int
	if _, err := fmt.Sscan(v, &u[0], &u[1], &u[2], &u[3], &u[4], &u[5]); err != nil {
		return err
	}
	// Of all threads, as a process of libc's would.
	if err := syscall.Setresgid(u[3], u[4], u[5]); err != nil {
		return err
	}
	return syscall.Setresuid(u[0], u[1], u[2])
}

func setComm(name string) error {
	return os.WriteFile("/proc/thread-self/comm", []byte(name), 0)
}

// threads is a process of several named threads, that sleep.
func threads() error {
	m := newMaker()
	var tids []int
	var errs []error
	var mu sync.Mutex
	var up sync.WaitGroup
	for i := range 5 {
		up.Add(1)
		go func() {
			runtime.LockOSThread()
			err := setComm(fmt.Sprintf("thread %d", i))
			mu.Lock()
			tids = append(tids, unix.Gettid())
			if err != nil {
				errs = append(errs, err)
			}
			mu.Unlock()
			up.Done()
			for {
				unix.Pause()
			}
		}()
	}
	up.Wait()
	if len(errs) > 0 {
		return errs[0]
	}
	m.info["tids"] = tids
	return m.stay()
}

// deadLeader is a process whose first thread has ended while others live on.
func deadLeader() error {
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(started)
		for {
			unix.Pause()
		}
	}()
	<-started
	if err := ready(nil); err != nil {
		return err
	}
	// Of this thread only. Not a raw system call: the runtime would wait for this
	// thread to come back, and burn time looking.
	unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
	return nil
}

// zombie is a process with an ended child it does not wait for.
func zombie() error {
	m := newMaker()
	m.do("child", func() error {
		pid, err := startTiny(tinyDir+"/exit", []string{"gone child", "with args"}, nil)
		m.info["child"] = pid
		if err != nil {
			return err
		}
		return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	})
	return m.stay()
}

// tracer is a process that traces a child and leaves it stopped.
func tracer() error {
	m := newMaker()
	m.do("trace", func() error {
		pid, err := startTiny(tinyDir+"/idle", []string{"traced"}, nil)
		m.info["traced"] = pid
		if err != nil {
			return err
		}
		if err := unix.PtraceAttach(pid); err != nil {
			return err
		}
		var ws unix.WaitStatus
		_, err = unix.Wait4(pid, &ws, unix.WALL, nil)
		return err
	})
	return m.stay()
}

// pidNS is the first process of a PID namespace; while UMBRA_DEPTH is above 1 it
// starts another one inside.
func pidNS() error {
	m := newMaker()
	m.info["ns_pid"] = os.Getpid()
	depth, _ := strconv.Atoi(os.Getenv("UMBRA_DEPTH"))
	m.do("inner", func() error {
		if depth <= 1 {
			_, err := startTiny(tinyDir+"/idle", []string{"in pidns"}, nil)
			return err
		}
		p := roleProcess("pidns")
		p.env = []string{"UMBRA_DEPTH=" + strconv.Itoa(depth-1)}
		p.attr.Cloneflags = unix.CLONE_NEWPID
		inner, err := spawn(p)
		m.info["inner"] = inner.Info
		return err
	})
	return m.stay()
}

// tty is a session leader with a controlling terminal.
func tty() error {
	m := newMaker()
	m.do("session", func() error { _, err := unix.Setsid(); return err })
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	m.fd("ptmx", master, err)
	m.do("terminal", func() error {
		if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("/dev/pts/%d", n)
		m.info["name"] = name
		slave, err := unix.Open(name, unix.O_RDWR, 0)
		m.fd("pts", slave, err)
		return unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0)
	})
	return m.stay()
}

// limits is a process with changed limits, privileges and habits.
func limits() error {
	m := newMaker()
	m.do("rlimit", func() error {
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 123, Max: 456})
	})
	m.do("core", func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 0, Max: 4096}) })
	m.do("oom", func() error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-321"), 0) })
	m.do("privileges", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
	m.do("capabilities", func() error {
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		d := [2]unix.CapUserData{{Effective: 0x400, Permitted: 0x402, Inheritable: 0x2}}
		return unix.Capset(&h, &d[0])
	})
	unix.Umask(0o027)
	return m.stay()
}

// elsewhere is a process with another root, or with a working directory that is gone.
func elsewhere() error {
	m := newMaker()
	dir := "/tmp/jail of " + strconv.Itoa(os.Getpid())
	m.do("mkdir", func() error { return os.MkdirAll(dir+"/inner dir", 0o755) })
	if os.Getenv("UMBRA_HOW") == "chroot" {
		m.do("chroot", func() error { return unix.Chroot(dir) })
		m.do("chdir", func() error { return unix.Chdir("/inner dir") })
		return m.stay()
	}
	m.do("chdir", func() error { return unix.Chdir(dir + "/inner dir") })
	m.do("remove", func() error { return os.RemoveAll(dir) })
	return m.stay()
}

// title is a process that wrote another title over its arguments: a shorter one,
// or one so long that it runs over the environment.
func title() error {
	text := "umbra: title changed"
	switch os.Getenv("UMBRA_HOW") {
	case "long":
		text = strings.Repeat("umbra: a long title ", 5)
	case "page":
		text = strings.Repeat("umbra: a very long title ", 205) // of 5125 bytes
	}
	overwriteArgs(text)
	return newMaker().stay()
}
