package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const archiveKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

// apt is a package index of its own: the sources are ours, everything else of
// the system's configuration (proxies, certificates) stays in force, and
// nothing of the system's apt is written to.
type apt struct {
	dir string
}

// newApt makes the private directories below dir and fetches the index of the
// suites, each a pair of archive ("debian") and suite ("bookworm").
func newApt(ctx context.Context, dir string, suites [][2]string) (*apt, error) {
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	options := "[arch=amd64]"
	if _, err := os.Stat(archiveKeys); err == nil {
		options = "[arch=amd64 signed-by=" + archiveKeys + "]"
	}
	var list strings.Builder
	for _, s := range suites {
		uri, err := archive(ctx, s[0])
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&list, "deb %s %s %s main\n", options, uri, s[1])
	}
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(list.String()), 0o644); err != nil {
		return nil, err
	}
	a := &apt{dir: dir}
	if _, err := a.run(ctx, dir, "apt-get", "update"); err != nil {
		return nil, fmt.Errorf("reach the package archive: %w", err)
	}
	return a, nil
}

// run executes an apt program in dir and returns its standard output. The error
// carries the end of what it printed.
func (a *apt) run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	options := []string{
		"-q",
		"-o", "Dir::Etc::SourceList=" + filepath.Join(a.dir, "sources.list"),
		"-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Dir::Etc::Preferences=/dev/null",
		"-o", "Dir::Etc::PreferencesParts=/dev/null",
		"-o", "Dir::State=" + filepath.Join(a.dir, "state"),
		"-o", "Dir::State::status=/dev/null",
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "APT::Architecture=amd64",
		"-o", "APT::Architectures=amd64",
		"-o", "APT::Sandbox::User=",
		"-o", "APT::Update::Error-Mode=any",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-o", "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
		"-o", "Acquire::Retries=2",
		"-o", "Acquire::http::Timeout=30",
		"-o", "Acquire::https::Timeout=30",
	}
	cmd := exec.CommandContext(ctx, program, append(options, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", program, args[0], err, tail(diag.Bytes(), 600))
	}
	return out.Bytes(), nil
}

// depends returns the names that the newest version of a package depends on,
// alternatives and versions left out.
func (a *apt) depends(ctx context.Context, name string) ([]string, error) {
	out, err := a.run(ctx, a.dir, "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		list, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		for _, d := range strings.Split(list, ",") {
			if f := strings.Fields(d); len(f) > 0 {
				names = append(names, f[0])
			}
		}
		break
	}
	return names, nil
}

// has tells whether the index holds a package, and not only others that name it.
func (a *apt) has(ctx context.Context, name string) bool {
	out, err := a.run(ctx, a.dir, "apt-cache", "show", "--no-all-versions", name)
	return err == nil && len(out) > 0
}

// unpack downloads packages and unpacks their files into dir.
func (a *apt) unpack(ctx context.Context, dir string, packages []string) error {
	debs := filepath.Join(a.dir, "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	if _, err := a.run(ctx, debs, "apt-get", append([]string{"download"}, packages...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	if len(files) != len(packages) {
		return fmt.Errorf("download %v: %d files came", packages, len(files))
	}
	for _, f := range files {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", f, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", filepath.Base(f), err, tail(out, 300))
		}
	}
	return nil
}

// tail returns the last n bytes of b as one trimmed string.
func tail(b []byte, n int) string {
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return strings.TrimSpace(string(b))
}
