package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// ProcTree is a guest's own /proc as its kernel showed it to the oracle. Paths
// are relative to /proc: "1/status", "1/fd/0". Files of a network namespace are
// below the first process that is in it: "1/net/tcp". The kernel's log is at
// "kmsg", a record a line as /dev/kmsg gives them.
type ProcTree struct {
	Files  map[string][]byte // content
	Links  map[string]string // target
	Errors map[string]string // why neither could be had
}

// Proc reads the guest's /proc through the oracle: everything, or what filter
// says: the processes ("all", "1,17"), then names of what to take of each
// ("stat,status,fd,net,task"), as the oracle's command "proc" does.
func (g *Guest) Proc(ctx context.Context, filter ...string) (*ProcTree, error) {
	b, err := g.Ask(ctx, strings.TrimSpace("proc "+strings.Join(filter, " ")))
	if err != nil {
		return nil, err
	}
	t, err := parseProc(b)
	if err != nil {
		return nil, fmt.Errorf("the guest's /proc: %w", err)
	}
	return t, nil
}

// parseProc reads the oracle's archive.
func parseProc(b []byte) (*ProcTree, error) {
	t := &ProcTree{Files: map[string][]byte{}, Links: map[string]string{}, Errors: map[string]string{}}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		if why, ok := h.PAXRecords["UMBRA.error"]; ok {
			t.Errors[h.Name] = why
			continue
		}
		switch h.Typeflag {
		case tar.TypeSymlink:
			t.Links[h.Name] = h.Linkname
		case tar.TypeReg:
			if h.Size > int64(len(b)) { // a sparse member, which the guest never makes
				return nil, fmt.Errorf("%s: %d bytes in an archive of %d", h.Name, h.Size, len(b))
			}
			content, err := io.ReadAll(r)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", h.Name, err)
			}
			t.Files[h.Name] = content
		default:
			return nil, fmt.Errorf("%s: member of type %q", h.Name, h.Typeflag)
		}
	}
}

// PIDs returns the process ids in t, ascending.
func (t *ProcTree) PIDs() []int {
	seen := map[int]bool{}
	for name := range t.Files {
		first, _, _ := strings.Cut(name, "/")
		if pid, err := strconv.Atoi(first); err == nil {
			seen[pid] = true
		}
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// Field returns a field of a process's status file, "" when it has none.
func (t *ProcTree) Field(pid int, name string) string {
	for line := range strings.Lines(string(t.Files[fmt.Sprintf("%d/status", pid)])) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// State is what the guest program made, as it says itself.
type State struct {
	Roles []Role         `json:"roles"`
	Tiny  map[string]int `json:"tiny"`  // process ids by name: "no args", "deleted image"
	Procs int            `json:"procs"` // more processes, as asked for
	Socks int            `json:"socks"` // more sockets, as asked for
}

// Role is one process of the state. Info maps what it made, a socket or a file,
// to {"fd": …, "inode": …}, or to {"missing": why} where this kernel lacks it.
type Role struct {
	Name string         `json:"name"`
	Role string         `json:"role"`
	PID  int            `json:"pid"`
	Info map[string]any `json:"info"`
}

// State asks the guest what it made.
func (g *Guest) State(ctx context.Context) (*State, error) {
	b, err := g.Ask(ctx, "state")
	if err != nil {
		return nil, err
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("the guest's state: %w", err)
	}
	return &s, nil
}

// Role returns the process of that name in s.
func (s *State) Role(name string) (Role, error) {
	i := slices.IndexFunc(s.Roles, func(r Role) bool { return r.Name == name })
	if i < 0 {
		return Role{}, fmt.Errorf("the guest has no role %q", name)
	}
	return s.Roles[i], nil
}
