package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// readyFD is the descriptor on which a role says that its state stands: it writes
// one JSON object and closes it.
const readyFD = 3

// process is how a role is started.
type process struct {
	name string // what it stands for in the state
	role string
	args []string // argv; the program itself is always /init
	env  []string // besides UMBRA_ROLE
	dir  string
	attr syscall.SysProcAttr
	// files are descriptors it gets behind readyFD.
	files []int
}

// roleProcess starts a role under its own name.
func roleProcess(role string) process {
	return process{name: role, role: role, args: []string{"umbra-" + role}}
}

// made is what a role tells of the state it made.
type made struct {
	Name string         `json:"name"`
	Role string         `json:"role"`
	PID  int            `json:"pid"` // in init's PID namespace
	Info map[string]any `json:"info,omitempty"`
}

// spawn starts p and waits until it says that its state stands.
func spawn(p process) (made, error) {
	m, err := spawnRole(p)
	if err != nil {
		return m, fmt.Errorf("role %s: %w", p.role, err)
	}
	return m, nil
}

func spawnRole(p process) (made, error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return made{}, err
	}
	r := os.NewFile(uintptr(fds[0]), "ready")
	defer r.Close()
	attr := &syscall.ProcAttr{
		Dir: p.dir,
		// One thread that runs Go code is enough, and none wakes up to collect.
		Env:   append([]string{"UMBRA_ROLE=" + p.role, "GOMAXPROCS=1", "GOGC=off"}, p.env...),
		Files: []uintptr{0, 1, 2, uintptr(fds[1])},
		Sys:   &p.attr,
	}
	for _, fd := range p.files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	pid, err := syscall.ForkExec("/init", p.args, attr)
	syscall.Close(fds[1])
	if err != nil {
		return made{}, err
	}
	m := made{Name: p.name, Role: p.role, PID: pid}
	b, err := io.ReadAll(r)
	if err != nil {
		return m, err
	}
	if len(b) == 0 {
		return m, errors.New("ended before it was ready")
	}
	return m, json.Unmarshal(b, &m.Info)
}

// ready says that the role's state stands.
func ready(info map[string]any) error {
	if info == nil {
		info = map[string]any{}
	}
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if _, err := syscall.Write(readyFD, b); err != nil {
		return fmt.Errorf("say ready: %w", err)
	}
	return syscall.Close(readyFD)
}
