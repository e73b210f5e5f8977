// Command guest is the one program of the lab's guests: it runs as init, brings
// the guest into a definite state by starting itself in many roles, and answers
// the host's questions about what the guest's kernel says. It runs only in a
// guest made for it, as root, and imports nothing of Umbra.
package main

import (
	"fmt"
	"os"
	"runtime"
)

// The first thread is the one that prctl, setresuid and their like must work on.
func init() { runtime.LockOSThread() }

func main() {
	role, ok := os.LookupEnv("UMBRA_ROLE")
	run := runInit
	if ok {
		run = func() error { return runRole(role) }
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "umbra-lab: a role failed: %v\n", err)
		os.Exit(1)
	}
}
