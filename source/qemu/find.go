package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// candidate is a QEMU process that a target may mean.
type candidate struct {
	p    *process
	args []string
	cfg  *config
}

// find takes hold of the machine that target names: by name; by PID; by the path of
// its QMP socket, which must contain a slash or match no name. A name wins over a
// socket in the working directory; a number that is one machine's name and another
// one's PID is ambiguous.
func find(ctx context.Context, target string) (*process, []string, error) {
	all, err := candidates(ctx)
	if err != nil {
		return nil, nil, err
	}
	c, err := pick(all, target)
	for _, other := range all {
		if other != c {
			other.p.close()
		}
	}
	if err != nil {
		return nil, nil, err
	}
	return c.p, c.args, nil
}

func candidates(ctx context.Context) ([]*candidate, error) {
	var all []*candidate
	err := eachQEMU(ctx, func(p *process, args []string) bool {
		all = append(all, &candidate{p, args, parseArgs(args[1:])})
		return true
	})
	if err != nil {
		for _, c := range all {
			c.p.close()
		}
		return nil, err
	}
	return all, nil
}

// pick chooses among all QEMU processes of this host.
func pick(all []*candidate, target string) (*candidate, error) {
	if strings.Contains(target, "/") {
		return pickSocket(all, target)
	}
	var found []*candidate
	pid, numErr := strconv.Atoi(target)
	for _, c := range all {
		if target != "" && c.cfg.name == target || numErr == nil && c.p.pid == pid {
			found = append(found, c)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, ambiguous(target, found)
	case numErr == nil:
		return nil, notQEMU(pid, all)
	}
	if st, err := os.Stat(target); err == nil && st.Mode()&fs.ModeSocket != 0 {
		return pickSocket(all, target)
	}
	return nil, &TargetError{Err: fmt.Errorf("%w: %q", ErrNoMachine, target), Hint: running(all)}
}

func ambiguous(target string, found []*candidate) error {
	pids := make([]string, len(found))
	for i, c := range found {
		pids[i] = strconv.Itoa(c.p.pid)
	}
	return &TargetError{
		Err:  fmt.Errorf("%w: %q is the QEMU processes %s", ErrAmbiguous, target, strings.Join(pids, ", ")),
		Hint: "name the machine by its PID: qemu:" + pids[0],
	}
}

// notQEMU explains a PID that is no machine.
func notQEMU(pid int, all []*candidate) error {
	p, err := openProcess(pid)
	if errors.Is(err, os.ErrProcessDone) {
		return &TargetError{Err: fmt.Errorf("%w: there is no process %d", ErrNoMachine, pid), Hint: running(all)}
	}
	if err != nil {
		return err
	}
	defer p.close()
	what := "a kernel thread or a process that has exited"
	if args, err := p.args(); err == nil && len(args) > 0 {
		what = filepath.Base(args[0])
	}
	return &TargetError{Err: fmt.Errorf("%w: process %d is %s", ErrNotQEMU, pid, what), Hint: running(all)}
}

// running is the hint that lists the machines there are.
func running(all []*candidate) string {
	if len(all) == 0 {
		return "no QEMU process runs on this host"
	}
	names := make([]string, len(all))
	for i, c := range all {
		names[i] = fmt.Sprintf("pid %d", c.p.pid)
		if c.cfg.name != "" {
			names[i] = fmt.Sprintf("%s (pid %d)", c.cfg.name, c.p.pid)
		}
	}
	return "machines on this host: " + strings.Join(names, ", ")
}

// pickSocket chooses the machine that listens on the QMP socket at path.
func pickSocket(all []*candidate, path string) (*candidate, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, &TargetError{Err: fmt.Errorf("%w: QMP socket %w", ErrNoMachine, err), Hint: running(all)}
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return nil, &TargetError{Err: fmt.Errorf("%w: %s is not a socket", ErrNoMachine, path), Hint: running(all)}
	}
	var found []*candidate
	for _, c := range all {
		for _, own := range c.p.qmpPaths(c.cfg) {
			if same, err := os.Stat(own); err == nil && os.SameFile(st, same) {
				found = append(found, c)
				break
			}
		}
	}
	switch len(found) {
	case 0:
		return nil, &TargetError{
			Err:  fmt.Errorf("%w: %s is no running machine's QMP socket", ErrNoMachine, path),
			Hint: running(all),
		}
	case 1:
		return found[0], nil
	}
	// Several were started with the same path: the last one to bind it listens.
	for _, c := range found {
		if c.p.listensAt(path) {
			return c, nil
		}
	}
	return nil, ambiguous(path, found)
}

// qmpPaths are the paths of the process's QMP sockets as seen from here.
func (p *process) qmpPaths(cfg *config) []string {
	var paths []string
	for _, path := range cfg.qmp {
		if !filepath.IsAbs(path) {
			cwd, err := os.Readlink(p.path("cwd"))
			if err != nil {
				continue
			}
			path = filepath.Join(cwd, path)
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			// Perhaps a container's path.
			path = p.path("root", path)
		}
		paths = append(paths, path)
	}
	for _, fd := range cfg.qmpFDs {
		link, err := os.Readlink(p.path("fd", strconv.Itoa(fd)))
		if err != nil {
			continue
		}
		for _, s := range listeners() {
			if "socket:["+s.inode+"]" == link && s.path != "" {
				paths = append(paths, s.path)
			}
		}
	}
	return paths
}

// listener is a listening Unix socket.
type listener struct{ inode, path string }

// listeners reads the listening Unix sockets of this network namespace
// (net/unix/af_unix.c, unix_seq_show).
func listeners() []listener {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil
	}
	var ls []listener
	for line := range strings.Lines(string(table)) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) < 8 || f[3] != "00010000" { // __SO_ACCEPTCON
			continue
		}
		_, path, _ := strings.Cut(strings.TrimSpace(line), " "+f[6]+" ")
		ls = append(ls, listener{f[6], path})
	}
	return ls
}

// listensAt tells whether the process holds a listening socket bound to path's
// file name.
func (p *process) listensAt(path string) bool {
	fds, err := os.ReadDir(p.path("fd"))
	if err != nil {
		return false
	}
	held := map[string]bool{}
	for _, e := range fds {
		if link, err := os.Readlink(p.path("fd", e.Name())); err == nil {
			held[link] = true
		}
	}
	for _, l := range listeners() {
		if held["socket:["+l.inode+"]"] && filepath.Base(l.path) == filepath.Base(path) {
			return true
		}
	}
	return false
}
