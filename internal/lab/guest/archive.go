package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What an archive of /proc holds. A name that ends in "/" is a directory whose
// entries are taken one level deep, symbolic links as links.
var (
	globalFiles = []string{
		"version", "cmdline", "uptime", "stat", "meminfo", "modules", "cpuinfo", "loadavg",
		"filesystems", "devices", "partitions", "swaps", "locks", "cgroups", "vmstat", "iomem",
		"interrupts", "sysvipc/shm", "sys/kernel/hostname", "sys/kernel/osrelease",
		"sys/kernel/version", "sys/kernel/random/boot_id", "sys/kernel/tainted",
		"sys/kernel/pid_max", "sys/fs/file-nr",
	}
	processFiles = []string{
		"status", "stat", "statm", "cmdline", "comm", "environ", "maps", "limits", "mountinfo",
		"mounts", "cgroup", "oom_score_adj", "loginuid", "sessionid", "auxv", "uid_map",
		"gid_map", "personality", "wchan", "io", "exe", "cwd", "root", "ns/", "fd/", "fdinfo/",
	}
	threadFiles = []string{"status", "stat", "comm", "children"}
	netFiles    = []string{
		"tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6", "unix",
		"packet", "netlink", "dev", "if_inet6", "route", "ipv6_route", "arp", "sockstat",
		"sockstat6", "ptype", "igmp", "dev_mcast", "protocols", "snmp",
	}
)

// fileMax bounds one file in an archive, in bytes.
const fileMax = 16 << 20

// recordMax is more than one read of /dev/kmsg gives, in bytes. A record that does
// not fit what is left of the buffer would be an error (CONSOLE_EXT_LOG_MAX).
const recordMax = 16 << 10

// archive collects files of /proc as a tar archive. What could not be read is an
// empty member with the reason in the record UMBRA.error.
type archive struct {
	out  bytes.Buffer
	buf  []byte // what the last file held
	tar  *tar.Writer
	want func(name string) bool
	nets map[string]bool // network namespaces seen
	err  error
}

// procArchive answers "proc [PIDS|all [NAMES]]", each a list with commas.
func procArchive(args string) ([]byte, error) {
	a := &archive{nets: map[string]bool{}, want: func(string) bool { return true }}
	a.out.Grow(16 << 20)
	a.tar = tar.NewWriter(&a.out)
	which, names, _ := strings.Cut(args, " ")
	if names != "" {
		list := strings.Split(names, ",")
		a.want = func(name string) bool { return slices.Contains(list, strings.TrimSuffix(name, "/")) }
	}
	pids := strings.Split(which, ",")
	if which == "" || which == "all" {
		var err error
		if pids, err = numbers("/proc"); err != nil {
			return nil, err
		}
	}
	if names == "" {
		for _, f := range globalFiles {
			a.file(f)
		}
		a.kernelLog()
	}
	for _, pid := range pids {
		a.process(pid)
	}
	if err := a.tar.Close(); err != nil && a.err == nil {
		a.err = err
	}
	return a.out.Bytes(), a.err
}

// numbers returns the entries of a directory whose names are numbers.
func numbers(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (a *archive) process(pid string) {
	for _, name := range processFiles {
		if a.want(name) {
			a.entry(pid + "/" + name)
		}
	}
	if a.want("task") {
		tids, err := numbers("/proc/" + pid + "/task")
		if err != nil {
			a.add(pid+"/task", nil, "", err)
		}
		for _, tid := range tids {
			for _, name := range threadFiles {
				a.file(pid + "/task/" + tid + "/" + name)
			}
		}
	}
	ns, err := os.Readlink("/proc/" + pid + "/ns/net")
	if a.want("net") && err == nil && !a.nets[ns] {
		a.nets[ns] = true
		for _, name := range netFiles {
			a.file(pid + "/net/" + name)
		}
	}
}

// entry adds a file, a link, or a directory's entries.
func (a *archive) entry(name string) {
	dir, isDir := strings.CutSuffix(name, "/")
	if isDir {
		entries, err := os.ReadDir("/proc/" + dir)
		if err != nil {
			a.add(dir, nil, "", err)
		}
		for _, e := range entries {
			a.entry(dir + "/" + e.Name())
		}
		return
	}
	target, err := os.Readlink("/proc/" + name)
	if errors.Is(err, syscall.EINVAL) {
		a.file(name)
		return
	}
	a.add(name, nil, target, err)
}

func (a *archive) file(name string) {
	fd, err := unix.Open("/proc/"+name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		a.add(name, nil, "", err)
		return
	}
	defer unix.Close(fd)
	b, err := a.readAll(fd)
	a.add(name, b, "", err)
}

// readAll reads to the end into the archive's buffer. System calls without the
// os package: it would watch each file with epoll, which costs more than the read.
func (a *archive) readAll(fd int) ([]byte, error) {
	n := 0
	for {
		if len(a.buf)-n < recordMax {
			if n >= fileMax {
				return nil, fmt.Errorf("more than %d bytes", fileMax)
			}
			a.buf = append(a.buf, make([]byte, max(n, 1<<16))...)
		}
		got, err := unix.Read(fd, a.buf[n:])
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EPIPE): // EPIPE: /dev/kmsg skips records it lost
		case errors.Is(err, unix.EAGAIN), err == nil && got == 0:
			return a.buf[:n], nil // /dev/kmsg has no end, only nothing more now
		case err != nil:
			return nil, err
		default:
			n += got
		}
	}
}

// kernelLog adds the kernel's messages, a record a line, as "kmsg".
func (a *archive) kernelLog() {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		a.add("kmsg", nil, "", err)
		return
	}
	defer unix.Close(fd)
	b, err := a.readAll(fd)
	a.add("kmsg", b, "", err)
}

// add writes one member: a file's content, a link's target, or the reason why
// there is neither.
func (a *archive) add(name string, content []byte, target string, failed error) {
	if a.err != nil {
		return
	}
	h := &tar.Header{Name: name, Mode: 0o444}
	switch {
	case failed != nil:
		var at *os.PathError
		if errors.As(failed, &at) { // the path is the member's name
			failed = at.Err
		}
		h.PAXRecords = map[string]string{"UMBRA.error": failed.Error()}
		content = nil
	case target != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	}
	h.Size = int64(len(content))
	if a.err = a.tar.WriteHeader(h); a.err == nil {
		_, a.err = a.tar.Write(content)
	}
}
