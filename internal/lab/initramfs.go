package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// guestProgram builds internal/lab/guest, the program that is init and everything
// else in the guest, and returns its path. The result is kept by the hash of its
// sources and of what it is linked with.
func guestProgram(ctx context.Context) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	sum, err := sourceHash(root)
	if err != nil {
		return "", fmt.Errorf("hash the guest program's sources: %w", err)
	}
	dir, err := cached(ctx, "guest-"+sum, func(dir string) error {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w",
			"-o", filepath.Join(dir, "init"), "./internal/lab/guest")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the guest program: %w: %s", err, tail(out, 1000))
		}
		return nil
	})
	return filepath.Join(dir, "init"), err
}

// moduleRoot returns the directory of this module's go.mod: above the working
// directory, or where this file was compiled.
func moduleRoot() (string, error) {
	var tried []string
	if wd, err := os.Getwd(); err == nil {
		tried = append(tried, wd)
	}
	if _, file, _, ok := runtime.Caller(0); ok {
		tried = append(tried, filepath.Dir(file))
	}
	for _, dir := range tried {
		for ; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
			if exists(filepath.Join(dir, "internal/lab/guest")) && exists(filepath.Join(dir, "go.mod")) {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("find the sources of the guest program: not above %s", strings.Join(tried, " or "))
}

// sourceHash returns a hash over the guest program's sources, the versions of
// what it imports and the compiler's.
func sourceHash(root string) (string, error) {
	files, err := filepath.Glob(filepath.Join(root, "internal/lab/guest/*.go"))
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version())
	for _, f := range append(files, filepath.Join(root, "go.sum")) {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %x\n", filepath.Base(f), sha256.Sum256(b))
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:12]), nil
}

// writeInitramfs writes the guest's first root file system: the program as /init,
// the directories it mounts on, and the kernel's modules with their load order.
func writeInitramfs(path, program string, k *Kernel) error {
	init, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	c := newCPIO(w)
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "etc", "mnt", "modules"} {
		c.Dir(d, 0o755)
	}
	c.Char("dev/console", 0o600, 5, 1)
	c.File("init", 0o755, init)
	c.File("etc/hostname", 0o644, []byte("umbra-lab\n"))
	entries, err := os.ReadDir(k.Modules)
	if err != nil {
		return err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(k.Modules, e.Name()))
		if err != nil {
			return err
		}
		c.File("modules/"+e.Name(), 0o644, b)
	}
	if err := c.Close(); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}
