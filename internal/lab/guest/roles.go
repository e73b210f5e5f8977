package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// roles are what this program can be in the guest besides init.
var roles map[string]func() error

func init() {
	roles = map[string]func() error{
		"oracle":      runOracle,
		"idle":        idle,
		"threads":     threads,
		"deadleader":  deadLeader,
		"zombie":      zombie,
		"tracer":      tracer,
		"pidns":       pidNS,
		"tty":         tty,
		"limits":      limits,
		"elsewhere":   elsewhere,
		"title":       title,
		"maps":        maps,
		"manymaps":    manyMaps,
		"files":       files,
		"manyfiles":   manyFiles,
		"tcp":         tcp,
		"timewait":    timeWaits,
		"datagrams":   datagrams,
		"unixsockets": unixSockets,
		"links":       links,
		"shared":      shared,
		"sharer":      sharer,
		"manysockets": manySockets,
		"netns":       netNS,
		"mountns":     mountNS,
		"mountslave":  mountSlave,
		"otherns":     otherNS,
		"cgroup":      inCgroup,
		"cgroup1":     cgroup1,
		"log":         logRecords,
		"storm":       storm,
		"stormer":     stormer,
	}
}

func runRole(name string) error {
	f, ok := roles[name]
	if !ok {
		return fmt.Errorf("unknown role %q", name)
	}
	// A child that held it too would keep ready from being heard.
	unix.CloseOnExec(readyFD)
	if err := setComm("umbra-" + name); err != nil {
		return err
	}
	return f()
}
