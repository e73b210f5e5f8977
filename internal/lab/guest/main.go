// Command guest is the one program of the lab's guests: it runs as init, brings
// the guest into a definite state by starting itself in many roles, and answers
// the host's questions about what the guest's kernel says. It runs only in a
// guest made for it, as root, and imports nothing of Umbra.
package main

import (
	"fmt"
	"os"
)

func main() {
	var err error
	if os.Getpid() == 1 {
		err = runInit()
	} else {
		err = runRole(os.Getenv("UMBRA_ROLE"))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "umbra-lab: failed: %v\n", err)
		os.Exit(1)
	}
}
