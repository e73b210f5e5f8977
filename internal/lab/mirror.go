package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

var errNoMirror = errors.New("this machine's apt names no archive of Debian packages; set UMBRA_LAB_MIRROR to one")

// archive returns where one of Debian's archives ("debian", "debian-security") is:
// below UMBRA_LAB_MIRROR where that is set, else where the machine's own apt takes it
// from, or beside the archive it takes "debian" from.
func archive(ctx context.Context, name string) (string, error) {
	if m := strings.TrimRight(os.Getenv("UMBRA_LAB_MIRROR"), "/"); m != "" {
		return m + "/" + name, nil
	}
	// One line for each index of each source, in either form of source list.
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt where it takes packages from: %w", err)
	}
	var beside string
	for _, uri := range strings.Fields(string(out)) {
		base, last, _ := cutLast(strings.TrimRight(uri, "/"))
		switch last {
		case name:
			return base + "/" + last, nil
		case "debian":
			beside = base + "/" + name
		}
	}
	if beside == "" {
		return "", errNoMirror
	}
	return beside, nil
}

// cutLast cuts a URI at its last slash.
func cutLast(uri string) (before, after string, ok bool) {
	i := strings.LastIndexByte(uri, '/')
	if i < 0 {
		return "", uri, false
	}
	return uri[:i], uri[i+1:], true
}
