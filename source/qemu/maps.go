package qemu

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMappings bounds the mappings read of one process (the kernel's own default
// limit is 65,530).
const maxMappings = 1 << 18

// mapping is one line of /proc/PID/maps (fs/proc/task_mmu.c, show_map_vma).
type mapping struct {
	start, end uint64 // host-virtual addresses, end exclusive
	perms      string // "rw-p": private, "rw-s": shared
	offset     uint64 // into the file
	dev        uint64 // as in a stat
	inode      uint64 // 0: anonymous
	path       string
}

func (m mapping) size() uint64    { return m.end - m.start }
func (m mapping) shared() bool    { return m.perms[3] == 's' }
func (m mapping) writable() bool  { return m.perms[0] == 'r' && m.perms[1] == 'w' }
func (m mapping) anonymous() bool { return m.inode == 0 && m.path == "" }

// mappings reads the process's address space, ascending.
func (p *process) mappings() ([]mapping, error) {
	f, err := os.Open(p.path("maps"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ms, err := readMappings(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.path("maps"), err)
	}
	return ms, nil
}

func readMappings(r io.Reader) ([]mapping, error) {
	ms := []mapping{}
	for sc := bufio.NewScanner(r); ; {
		if !sc.Scan() {
			return ms, sc.Err()
		}
		m, err := parseMapping(sc.Text())
		if err != nil {
			return nil, err
		}
		if len(ms) == maxMappings {
			return nil, fmt.Errorf("more than %d mappings", maxMappings)
		}
		if n := len(ms); n > 0 && m.start < ms[n-1].end {
			return nil, fmt.Errorf("mapping at %#x is out of order", m.start)
		}
		ms = append(ms, m)
	}
}

// parseMapping reads one line: range, permissions, offset, device, inode, path.
func parseMapping(line string) (mapping, error) {
	bad := func() (mapping, error) { return mapping{}, fmt.Errorf("malformed mapping %q", line) }
	var f [5]string
	rest := line
	for i := range f {
		var ok bool
		if f[i], rest, ok = strings.Cut(rest, " "); !ok && i < 4 {
			return bad()
		}
	}
	start, end, ok := strings.Cut(f[0], "-")
	major, minor, ok2 := strings.Cut(f[3], ":")
	if !ok || !ok2 || len(f[1]) != 4 {
		return bad()
	}
	m := mapping{perms: f[1], path: strings.TrimLeft(rest, " ")}
	var maj, min uint64
	for _, n := range []struct {
		dst  *uint64
		s    string
		base int
		bits int
	}{
		{&m.start, start, 16, 64}, {&m.end, end, 16, 64}, {&m.offset, f[2], 16, 64},
		{&maj, major, 16, 32}, {&min, minor, 16, 32}, {&m.inode, f[4], 10, 64},
	} {
		v, err := strconv.ParseUint(n.s, n.base, n.bits)
		if err != nil {
			return bad()
		}
		*n.dst = v
	}
	if m.start >= m.end {
		return bad()
	}
	m.dev = unix.Mkdev(uint32(maj), uint32(min))
	return m, nil
}
