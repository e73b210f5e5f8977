package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// netNS is a process in a network namespace of its own, with sockets.
func netNS() error {
	m := newMaker()
	m.do("network", func() error { return setUpNetwork(false) })
	l, err := listen("127.0.0.1:7001", 3)
	m.fd("listen", l, err)
	c, s, err := pair(l, "127.0.0.1:7151", "127.0.0.1:7001")
	m.fd("client", c, err)
	m.fd("server", s, err)
	u, err := bound("[::1]:7251", unix.SOCK_DGRAM, 0)
	m.fd("udp6", u, err)
	x, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	m.fd("unix", x, err)
	// The same abstract name as in the first namespace: names are per namespace.
	m.do("abstract", func() error { return unix.Bind(x, &unix.SockaddrUnix{Name: "@umbra abstract"}) })
	return m.stay()
}

// mountNS is a process in a mount namespace of its own, with mounts of every kind.
func mountNS() error {
	m := newMaker()
	mount := func(from, to, fs string, flags uintptr, data string) {
		m.do("mount "+to, func() error {
			if err := os.MkdirAll(to, 0o755); err != nil {
				return err
			}
			return unix.Mount(from, to, fs, flags, data)
		})
	}
	m.do("private", func() error { return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "") })
	mount("a source", "/mnt/with space", "tmpfs", unix.MS_NOEXEC, "size=1m,mode=0700")
	mount("none", "/mnt/new\nline", "tmpfs", unix.MS_NODEV, "")
	mount("back\\slash#", "/mnt/back\\slash", "tmpfs", unix.MS_NOATIME, "")
	mount("/etc", "/mnt/bound", "", unix.MS_BIND, "")
	mount("", "/mnt/bound", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	mount("/mnt/with space", "/mnt/bound tmpfs", "", unix.MS_BIND, "")
	mount("shared", "/mnt/shared", "tmpfs", 0, "")
	mount("", "/mnt/shared", "", unix.MS_SHARED, "")
	mount("/mnt/shared", "/mnt/slave", "", unix.MS_BIND, "")
	mount("", "/mnt/slave", "", unix.MS_SLAVE, "")
	mount("below", "/mnt/shared/deep", "tmpfs", 0, "")
	mount("/mnt/shared", "/mnt/passed", "", unix.MS_BIND, "")
	mount("", "/mnt/passed", "", unix.MS_SLAVE, "")
	mount("", "/mnt/passed", "", unix.MS_SHARED, "")
	mount("cover", "/mnt/shared", "tmpfs", 0, "")
	mount("work", "/mnt/overlay", "tmpfs", 0, "")
	m.do("overlay", func() error { return overlay(m) })
	m.do("inner", func() error {
		p := roleProcess("mountslave")
		p.attr.Cloneflags = unix.CLONE_NEWNS
		_, err := spawn(p)
		return err
	})
	return m.stay()
}

// mountSlave is a process in a copy of mountNS's namespace, where a mount has its
// master outside, which is itself the slave of one that has a copy inside.
func mountSlave() error {
	m := newMaker()
	m.do("slave", func() error { return unix.Mount("", "/mnt/passed", "", unix.MS_SLAVE, "") })
	return m.stay()
}

func overlay(m *maker) error {
	const base = "/mnt/overlay/"
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(base+d, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(base+"lower/file", []byte("below\n"), 0o644); err != nil {
		return err
	}
	data := fmt.Sprintf("lowerdir=%slower,upperdir=%supper,workdir=%swork", base, base, base)
	if err := unix.Mount("overlay", base+"merged", "overlay", 0, data); err != nil {
		m.missing("overlay", err)
		return nil
	}
	fd, err := unix.Open(base+"merged/file", unix.O_RDONLY, 0)
	m.fd("file in the overlay", fd, err)
	return nil
}

// otherNS is a process in new namespaces of the other kinds.
func otherNS() error {
	m := newMaker()
	m.do("host name", func() error { return unix.Sethostname([]byte("umbra-inner")) })
	return m.stay()
}

const cgroupRoot = "/sys/fs/cgroup"

// makeCgroups makes control groups; those with processes in them are leaves.
func makeCgroups() error {
	for _, dir := range []string{"umbra/inner one", "umbra/inner two/deep", "other"} {
		if err := os.MkdirAll(filepath.Join(cgroupRoot, dir), 0o755); err != nil {
			return err
		}
	}
	// Controllers differ between kernels: take those both levels may delegate.
	have, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(have)) {
		if name == "memory" || name == "pids" {
			for _, dir := range []string{"", "/umbra"} {
				if err := os.WriteFile(cgroupRoot+dir+"/cgroup.subtree_control", []byte("+"+name), 0); err != nil {
					return fmt.Errorf("delegate %s: %w", name, err)
				}
			}
		}
	}
	return nil
}

// inCgroup is a process in the control group of UMBRA_CGROUP.
func inCgroup() error {
	m := newMaker()
	m.do("move", func() error {
		return os.WriteFile(filepath.Join(cgroupRoot, os.Getenv("UMBRA_CGROUP"), "cgroup.procs"), []byte("0"), 0)
	})
	return m.stay()
}
