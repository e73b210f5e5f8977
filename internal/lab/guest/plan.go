package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const stateFile = "/run/umbra/state.json"

// state is what the oracle's command of that name answers.
type state struct {
	Roles []made         `json:"roles"`
	Tiny  map[string]int `json:"tiny"`  // process ids of the tiny programs, by name
	Procs int            `json:"procs"` // umbra.procs
	Socks int            `json:"socks"` // umbra.socks
}

// plan lists the processes of the definite state.
func plan() []process {
	named := func(name, role string, env ...string) process {
		p := roleProcess(role)
		p.name, p.env = name, env
		return p
	}
	with := func(p process, change func(*process)) process {
		change(&p)
		return p
	}
	ps := []process{
		with(named("uid", "idle"), func(p *process) {
			p.attr.Credential = &syscall.Credential{Uid: 1000, Gid: 1001, Groups: []uint32{27, 1001, 4000000000}}
			p.dir = "/tmp"
		}),
		named("ids", "idle", "UMBRA_IDS=1001 1002 1003 2001 2002 2003"),
		named("nobody", "idle", "UMBRA_IDS=65534 65534 65534 65534 65534 65534"),
		named("nice", "idle", "UMBRA_NICE=7"),
		named("not nice", "idle", "UMBRA_NICE=-11"),
		named("fifo", "idle", "UMBRA_POLICY=1 42"),
		named("batch", "idle", "UMBRA_POLICY=3 0"),
		named("idle policy", "idle", "UMBRA_POLICY=5 0"),
		with(named("long args", "idle"), func(p *process) {
			p.args = []string{"umbra-long"}
			for i := range 40 {
				p.args = append(p.args, fmt.Sprintf("--argument-%d=%s", i, strings.Repeat("x", 300)))
			}
		}),
		with(named("one long arg", "idle"), func(p *process) { p.args = []string{strings.Repeat("/long", 2500)} }),
		with(named("odd args", "idle"), func(p *process) {
			p.args = []string{"/bin/odd name", "", "two words", "new\nline", "\"quoted\"", "\xff\xfe", "ü→", ""}
		}),
		with(named("session", "idle", "EMPTY=", "SPACE=a b", "NEWLINE=a\nb", "NOT_UTF8=\xff"), func(p *process) { p.attr.Setsid = true }),
		with(named("group", "idle"), func(p *process) { p.attr.Setpgid = true }),
		named("stopped", "idle"),
	}
	for i, comm := range []string{"na me", "(paren)", ") S 1 (", "new\nline", "ünï→", "back\\slash", "tab\there", "\xff\xfe", "exactly15bytes!", ""} {
		ps = append(ps, named(fmt.Sprintf("comm %d", i), "idle", "UMBRA_COMM="+comm))
	}
	for _, role := range []string{"threads", "deadleader", "zombie", "tracer", "tty", "limits", "maps", "manymaps",
		"files", "manyfiles", "tcp", "datagrams", "unixsockets", "links", "shared"} {
		ps = append(ps, named(role, role))
	}
	return append(ps,
		named("chroot", "elsewhere", "UMBRA_HOW=chroot"),
		named("lost directory", "elsewhere"),
		named("short title", "title"),
		named("long title", "title", "UMBRA_HOW=long", "UMBRA_PADDING="+strings.Repeat("-", 200)),
		with(named("title of more than a page", "title", "UMBRA_HOW=page", "UMBRA_PADDING="+strings.Repeat("-", 200)), func(p *process) {
			p.args = append(p.args, strings.Repeat("-", 5000))
		}),
		named("cgroup", "cgroup", "UMBRA_CGROUP=umbra/inner one"),
		named("deep cgroup", "cgroup", "UMBRA_CGROUP=umbra/inner two/deep"),
		with(named("pidns", "pidns", "UMBRA_DEPTH=2"), func(p *process) { p.attr.Cloneflags = unix.CLONE_NEWPID }),
		with(named("netns", "netns"), func(p *process) { p.attr.Cloneflags = unix.CLONE_NEWNET }),
		with(named("mountns", "mountns"), func(p *process) { p.attr.Cloneflags = unix.CLONE_NEWNS }),
		with(named("otherns", "otherns"), func(p *process) {
			p.attr.Cloneflags = unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP
		}),
		with(named("userns", "idle"), func(p *process) {
			p.attr.Cloneflags = unix.CLONE_NEWUSER
			p.attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 3000, Size: 10}}
			p.attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 4000, Size: 10}}
			p.attr.Credential = &syscall.Credential{Uid: 1, Gid: 2}
		}),
	)
}

// makeState brings the guest into its definite state and leaves its description
// for the oracle.
func makeState(p params) error {
	if err := writeTiny(); err != nil {
		return err
	}
	s := state{Tiny: map[string]int{}, Procs: p.procs, Socks: p.socks}
	if err := setUpNetwork(p.state); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if p.state {
		if err := makeDefinite(&s); err != nil {
			return err
		}
	}
	if p.socks > 0 {
		many := roleProcess("manysockets")
		many.env = []string{fmt.Sprintf("UMBRA_COUNT=%d", p.socks)}
		m, err := spawn(many)
		if err != nil {
			return err
		}
		s.Roles = append(s.Roles, m)
	}
	if err := startMany(p.procs); err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(stateFile, b, 0o644)
}

func makeDefinite(s *state) error {
	if err := makeCgroups(); err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	for _, p := range plan() {
		fmt.Printf("umbra-lab: %s\n", p.name) // to see where a boot hangs
		m, err := spawn(p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		switch p.name {
		case "stopped":
			err = syscall.Kill(m.PID, syscall.SIGSTOP)
		case "netns":
			err = moveToNamespace(m.PID)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		s.Roles = append(s.Roles, m)
	}
	return startOdd(s.Tiny)
}

// startOdd starts tiny programs with odd images and no arguments.
func startOdd(pids map[string]int) error {
	image := tinyELF(pauseCode)
	for _, o := range []struct {
		name, path string
		args       []string
		gone       bool
	}{
		{"no args", tinyDir + "/idle", nil, false},
		{"uninterruptible", tinyDir + "/vfork", []string{"vfork"}, false},
		{"odd image", "/tmp/image with\nnew line", []string{"odd image"}, false},
		{"deleted image", "/tmp/image to go", []string{"deleted image"}, true},
	} {
		if strings.HasPrefix(o.path, "/tmp/") {
			if err := os.WriteFile(o.path, image, 0o755); err != nil {
				return err
			}
		}
		pid, err := startTiny(o.path, o.args, nil)
		if err != nil {
			return err
		}
		pids[o.name] = pid
		if o.gone {
			if err := os.Remove(o.path); err != nil {
				return err
			}
		}
	}
	return nil
}
