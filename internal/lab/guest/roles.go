package main

import "fmt"

// roles are what this program can be in the guest besides init.
var roles map[string]func() error

func init() {
	roles = map[string]func() error{
		"oracle": runOracle,
	}
}

func runRole(name string) error {
	f, ok := roles[name]
	if !ok {
		return fmt.Errorf("unknown role %q", name)
	}
	return f()
}
