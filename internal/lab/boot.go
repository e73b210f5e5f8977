// Package lab boots real Linux guests under QEMU, for tests, demonstrations and
// benchmarks: Debian's kernels out of its package archive, and a root file system
// that is one program of ours (internal/lab/guest). That program brings the guest
// into a definite state and, as an oracle, tells what the guest's own kernel says
// of it. Nothing outside the user's cache directory and the temporary
// directories is written to.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bootTimeout bounds a boot whose context has no deadline.
const bootTimeout = 5 * time.Minute

// Guest is a machine that has been booted. Its methods may be used by several
// goroutines.
type Guest struct {
	cfg    Config
	kernel *Kernel
	accel  string
	dir    string // sockets, initramfs
	lock   *os.File
	ramDir string // "" when the RAM's file is the caller's
	lockR  *os.File
	files  files

	cmd     *exec.Cmd
	console *console
	stderr  bytes.Buffer
	done    chan struct{} // closed when QEMU has ended
	exit    error         // why, valid after done

	monitor *monitor
	oracle  *oracle
	close   sync.Once
}

// Boot starts a machine and waits until its guest program has made its state and
// printed the marker. When it returns an error nothing is left behind; the error
// carries the end of the guest's console. The machine ends with this process.
func Boot(ctx context.Context, c Config) (*Guest, error) {
	c = c.withDefaults()
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("boot a guest: %w", err)
	}
	kernel, err := FetchKernel(ctx, c.Kernel, c.Flavour)
	if err != nil {
		return nil, err
	}
	accel := c.Accel
	if accel == "" {
		if accel, err = chooseAccel(ctx); err != nil {
			return nil, err
		}
	}
	return bootWith(ctx, c, kernel, accel)
}

// bootWith is Boot with everything chosen.
func bootWith(ctx context.Context, c Config, kernel *Kernel, accel string) (*Guest, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bootTimeout)
		defer cancel()
	}
	program, err := guestProgram(ctx)
	if err != nil {
		return nil, err
	}
	root := ""
	if c.Root != "" {
		if root, err = debianRoot(ctx); err != nil {
			return nil, err
		}
	}
	g := &Guest{cfg: c, kernel: kernel, accel: accel, console: newConsole(), done: make(chan struct{})}
	if err := g.start(ctx, program, root); err != nil {
		g.Close()
		return nil, fmt.Errorf("boot %s: %w", kernel.Release, err)
	}
	return g, nil
}

// start lays out the machine's files, starts QEMU and waits for the guest.
func (g *Guest) start(ctx context.Context, program, root string) error {
	if err := g.makeFiles(program, root); err != nil {
		return err
	}
	if err := g.spawn(); err != nil {
		return err
	}
	conn, err := g.dial(ctx, g.files.control)
	if err != nil {
		return err
	}
	if g.monitor, err = newMonitor(ctx, conn); err != nil {
		return g.explain(err)
	}
	if !g.cfg.NoOracle {
		// The guest waits for a listener, so that it need not poll later.
		conn, err := g.dial(ctx, g.files.oracle)
		if err != nil {
			return err
		}
		g.oracle = newOracle(conn)
	}
	return g.waitReady(ctx)
}

// makeFiles makes the machine's directories and chooses its paths. root is the
// archive that goes with Config.Root.
func (g *Guest) makeFiles(program, root string) (err error) {
	sweep(os.TempDir(), ramParent())
	if g.dir, g.lock, err = newDir(os.TempDir()); err != nil {
		return err
	}
	if g.cfg.Name == "" {
		g.cfg.Name = filepath.Base(g.dir)
	}
	g.files = files{
		image:   g.kernel.Image,
		initrd:  filepath.Join(g.dir, "initrd"),
		oracle:  filepath.Join(g.dir, "oracle"),
		control: filepath.Join(g.dir, "control"),
		qmp:     filepath.Join(g.dir, "qmp"),
		ram:     g.cfg.MemPath,
	}
	if g.cfg.RAM == RAMFile && g.files.ram == "" {
		if g.ramDir, g.lockR, err = newDir(ramParent()); err != nil {
			return err
		}
		g.files.ram = filepath.Join(g.ramDir, "ram")
	}
	// QEMU does not clear an existing file: the last boot would still lie in it.
	if !g.cfg.KeepRAM {
		g.removeRAM()
	}
	if err := writeInitramfs(g.files.initrd, program, g.kernel); err != nil || g.cfg.Root == "" {
		return err
	}
	return appendFile(g.files.initrd, root)
}

func (g *Guest) removeRAM() {
	if g.cfg.RAM != RAMFile || g.files.ram == "" {
		return
	}
	for i := range max(g.cfg.NUMA, 1) {
		os.Remove(nodePath(g.files.ram, i))
	}
}

// spawn starts QEMU. The signal that ends it with this process is sent when the
// thread that started it ends, so that thread is kept until QEMU has ended.
func (g *Guest) spawn() error {
	g.cmd = exec.Command("qemu-system-x86_64", g.cfg.args(g.accel, g.files)...)
	g.cmd.Stdout, g.cmd.Stderr = g.console, &g.stderr
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := g.cmd.Start()
		started <- err
		if err == nil {
			g.exit = g.cmd.Wait()
			close(g.done)
		}
	}()
	if err := <-started; err != nil {
		g.cmd = nil
		return fmt.Errorf("start QEMU: %w", err)
	}
	return nil
}

// dial connects to one of QEMU's sockets, which it makes shortly after its start.
func (g *Guest) dial(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-g.done:
			return nil, g.explain(errors.New("QEMU ended"))
		case <-ctx.Done():
			return nil, g.explain(fmt.Errorf("connect to QEMU: %w", err))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// waitReady waits for the marker of the present boot.
func (g *Guest) waitReady(ctx context.Context) error {
	ready, failed := g.console.signals()
	select {
	case <-ready:
		return nil
	case <-failed:
		return g.explain(errors.New("the guest failed"))
	case <-g.done:
		return g.explain(errors.New("QEMU ended"))
	case <-ctx.Done():
		return g.explain(fmt.Errorf("wait for the guest to be ready: %w", ctx.Err()))
	}
}

// explain adds to err what QEMU and the guest printed last.
func (g *Guest) explain(err error) error {
	select {
	case <-g.done:
		err = fmt.Errorf("%w (QEMU: %v): %s", err, g.exit, tail(g.stderr.Bytes(), 1000))
	case <-time.After(200 * time.Millisecond): // a lost connection can come before the end
	}
	return fmt.Errorf("%w; console ends:\n%s", err, g.console.tail(8000))
}

// PID is QEMU's process id.
func (g *Guest) PID() int { return g.cmd.Process.Pid }

// Name is the machine's name, as given to QEMU's -name.
func (g *Guest) Name() string { return g.cfg.Name }

// Dir is a directory of the machine's own that Close removes.
func (g *Guest) Dir() string { return g.dir }

// Kernel is what was booted.
func (g *Guest) Kernel() Kernel { return *g.kernel }

// Config is the configuration with its defaults filled in.
func (g *Guest) Config() Config { return g.cfg }

// Accel is the accelerator in use, "kvm" or "tcg".
func (g *Guest) Accel() string { return g.accel }

// QMPPath is the socket that Config.QMP asks for, "" without. The lab itself
// does not use it: QEMU serves one client of a socket at a time.
func (g *Guest) QMPPath() string {
	if !g.cfg.QMP {
		return ""
	}
	return g.files.qmp
}

// RAMPath is the file that holds the RAM (of the first NUMA node; the next ones
// have .1, .2, … added), "" when no file does.
func (g *Guest) RAMPath() string {
	if g.cfg.RAM != RAMFile {
		return ""
	}
	return g.files.ram
}

// Console returns what the guest printed, or the last of it.
func (g *Guest) Console() string { return g.console.String() }

// Done is closed when QEMU has ended.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Pause stops the machine's CPUs.
func (g *Guest) Pause(ctx context.Context) error { return g.monitor.execute(ctx, "stop") }

// Resume lets the machine's CPUs run.
func (g *Guest) Resume(ctx context.Context) error { return g.monitor.execute(ctx, "cont") }

// Reset resets the machine as its button would and waits for the new boot.
func (g *Guest) Reset(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bootTimeout)
		defer cancel()
	}
	g.console.restart()
	if err := g.monitor.execute(ctx, "system_reset"); err != nil {
		return err
	}
	return g.waitReady(ctx)
}

// Close ends the machine and removes what it used. It is safe to call twice, and
// after QEMU ended by itself.
func (g *Guest) Close() error {
	g.close.Do(func() {
		if g.cmd != nil {
			g.cmd.Process.Kill()
			<-g.done
		}
		if g.monitor != nil {
			g.monitor.conn.Close()
		}
		if g.oracle != nil {
			g.oracle.conn.Close()
		}
		if !g.cfg.KeepRAM {
			g.removeRAM()
		}
		for _, dir := range []string{g.dir, g.ramDir} {
			if strings.HasPrefix(filepath.Base(dir), dirPrefix) {
				os.RemoveAll(dir)
			}
		}
		for _, f := range []*os.File{g.lock, g.lockR} {
			if f != nil {
				f.Close()
			}
		}
	})
	return nil
}
