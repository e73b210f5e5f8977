package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// params are the words for the guest program on the kernel's command line.
type params struct {
	oracle string   // "virtio", "none", or a terminal's name
	procs  int      // more processes
	socks  int      // more sockets
	state  bool     // make the definite state
	load   []string // modules to load besides the usual ones
}

func readParams() (params, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return params{}, err
	}
	return parseParams(string(b))
}

func parseParams(line string) (params, error) {
	p := params{oracle: "virtio", state: true}
	for word := range strings.FieldsSeq(line) {
		name, ok := strings.CutPrefix(word, "umbra.")
		if !ok {
			continue
		}
		name, value, _ := strings.Cut(name, "=")
		var err error
		switch name {
		case "oracle":
			p.oracle = value
		case "procs":
			p.procs, err = strconv.Atoi(value)
		case "socks":
			p.socks, err = strconv.Atoi(value)
		case "state":
			p.state = value != "0"
		case "load":
			p.load = strings.Split(value, ",")
		default:
			err = fmt.Errorf("unknown parameter")
		}
		if err != nil {
			return p, fmt.Errorf("kernel command line: %s: %w", word, err)
		}
	}
	return p, nil
}
