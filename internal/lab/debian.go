package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// debianLayout is the version of what debianRoot leaves in the cache.
const debianLayout = 2

// debianSuite is the release whose userland a guest with Config.Debian runs.
const debianSuite = "bookworm"

// debianTimeout bounds the making of that userland.
const debianTimeout = 15 * time.Minute

// debianPackages are what it runs besides Debian's minimum: systemd and daemons
// that bring groups, namespaces, mounts and sockets of their own.
var debianPackages = []string{
	"systemd-sysv", "systemd-timesyncd", "dbus", "udev", "kmod", "libpam-systemd", "openssh-server", "cron",
	"nginx-light", "rsyslog", "procps", "iproute2",
}

// debianFiles are what the lab adds. The oracle is the guest program, which lies
// at /init, and starts when everything else runs.
var debianFiles = map[string]string{
	"etc/fstab": "",
	"etc/systemd/system/umbra.target": `[Unit]
Requires=multi-user.target umbra-lab.service umbra-guarded.service
After=multi-user.target
`,
	"etc/systemd/system/umbra-lab.service": `[Unit]
After=multi-user.target umbra-guarded.service user@1000.service
[Service]
Environment=UMBRA_ROLE=oracle GOMAXPROCS=1 GOGC=off
ExecStartPre=-/bin/sh -c 'for m in $(cat /modules/order); do insmod /modules/$m.ko; done; sleep 5'
ExecStart=/bin/sh -c 'exec /init oracle 3>/dev/null'
ExecStartPost=/bin/sh -c 'echo umbra-lab: ready >/dev/console'
`,
	"etc/systemd/system/umbra-guarded.service": `[Unit]
Description=a service behind every fence that systemd builds
[Service]
DynamicUser=yes
StateDirectory=umbra
PrivateTmp=yes
PrivateNetwork=yes
PrivateDevices=yes
PrivateUsers=yes
ProtectSystem=strict
ProtectHome=tmpfs
ProtectHostname=yes
ProtectProc=invisible
ProtectKernelTunables=yes
NoNewPrivileges=yes
SystemCallFilter=@system-service
MemoryMax=64M
CPUWeight=20
ExecStart=/bin/sh -c 'exec 5>/var/lib/umbra/open; sleep infinity & wait'
`,
}

// debianRoot returns the archive of a Debian system, made with debootstrap when
// the cache has none. It needs root.
func debianRoot(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, debianTimeout)
	defer cancel()
	dir, err := cached(ctx, fmt.Sprintf("debian-%s-v%d", debianSuite, debianLayout), func(dir string) error {
		root := filepath.Join(dir, "root")
		mirror, err := archive(ctx, "debian")
		if err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "debootstrap", "--variant=minbase",
			"--include="+strings.Join(debianPackages, ","), debianSuite, root, mirror).CombinedOutput()
		if err != nil {
			return fmt.Errorf("debootstrap: %w: %s", err, tail(out, 1000))
		}
		if err := furnish(ctx, root); err != nil {
			return err
		}
		if err := writeTree(filepath.Join(dir, "cpio"), root); err != nil {
			return err
		}
		return os.RemoveAll(root)
	})
	if err != nil {
		return "", fmt.Errorf("make a Debian system: %w", err)
	}
	return filepath.Join(dir, "cpio"), nil
}

// furnish takes from a system what only fills memory and adds what the lab needs.
func furnish(ctx context.Context, root string) error {
	for _, useless := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl",
		"usr/share/i18n", "usr/lib/x86_64-linux-gnu/gconv", "var/cache/apt", "var/lib/apt/lists"} {
		if err := os.RemoveAll(filepath.Join(root, useless)); err != nil {
			return err
		}
	}
	for name, content := range debianFiles {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	const user = "useradd --create-home --uid 1000 --shell /bin/sh someone && " +
		"mkdir -p /var/lib/systemd/linger && touch /var/lib/systemd/linger/someone"
	if out, err := exec.CommandContext(ctx, "chroot", root, "/bin/sh", "-c", user).CombinedOutput(); err != nil {
		return fmt.Errorf("add a user: %w: %s", err, tail(out, 300))
	}
	return nil
}

// writeTree writes an archive of the tree below root.
func writeTree(path, root string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	c := newCPIO(w)
	if err := c.Tree(root); err != nil {
		return err
	}
	if err := c.Close(); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// appendFile adds the content of the file from to the file to. The kernel unpacks
// archives that lie behind each other, when each begins at a multiple of 4.
func appendFile(to, from string) error {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
