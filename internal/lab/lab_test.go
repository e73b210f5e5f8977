package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Getenv(keeperEnv) != "" {
		keeper()
		return
	}
	Main(m)
}

// within returns a context that bounds what a test waits for.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestKernels boots each generation and checks that what the guest program says
// it made is what the guest's kernel shows.
func TestKernels(t *testing.T) {
	for _, version := range Kernels() {
		t.Run(version, func(t *testing.T) {
			g, err := Boot(within(t, bootTimeout), Config{Kernel: version, MemMB: 384})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			ctx := within(t, 2*time.Minute)
			release, err := g.Ask(ctx, "cat /proc/sys/kernel/osrelease")
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(string(release)); got != g.Kernel().Release {
				t.Errorf("the guest runs %q, booted %q", got, g.Kernel().Release)
			}
			state, err := g.State(ctx)
			if err != nil {
				t.Fatal(err)
			}
			tree, err := g.Proc(ctx)
			if err != nil {
				t.Fatal(err)
			}
			checkDescriptors(t, state, tree)
			checkProcesses(t, state, tree)
			checkSockets(t, state, tree)
			checkNamespaces(t, state, tree)
		})
	}
}

// checkDescriptors compares every descriptor a role says it has.
func checkDescriptors(t *testing.T, s *State, tree *ProcTree) {
	t.Helper()
	n := 0
	for _, r := range s.Roles {
		for name, v := range r.Info {
			made, ok := v.(map[string]any)
			if !ok || made["fd"] == nil {
				continue
			}
			n++
			fd := fmt.Sprintf("%d/fd/%v", r.PID, made["fd"])
			link, ok := tree.Links[fd]
			if !ok {
				t.Errorf("%s, %s: /proc has no %s: %s", r.Name, name, fd, tree.Errors[fd])
			}
			if inode, ok := strings.CutPrefix(link, "socket:["); ok {
				if want := fmt.Sprintf("%.0f]", made["inode"]); inode != want {
					t.Errorf("%s, %s: inode %s in /proc, made %s", r.Name, name, inode, want)
				}
			}
		}
	}
	if n < 80 {
		t.Errorf("the roles name only %d descriptors", n)
	}
}

// checkProcesses compares what is special about single processes.
func checkProcesses(t *testing.T, s *State, tree *ProcTree) {
	t.Helper()
	for _, c := range []struct{ role, field, want string }{
		{"uid", "Uid", "1000\t1000\t1000\t1000"},
		{"uid", "Groups", "27 1001 4000000000"},
		{"ids", "Uid", "1001\t1002\t1003\t1002"},
		{"ids", "Gid", "2001\t2002\t2003\t2002"},
		{"stopped", "State", "T (stopped)"},
		{"deadleader", "State", "Z (zombie)"},
		{"comm 1", "Name", "(paren)"},
		{"comm 3", "Name", `new\nline`},
		{"comm 8", "Name", "exactly15bytes!"},
		{"limits", "NoNewPrivs", "1"},
		{"limits", "CapEff", "0000000000000400"},
		{"limits", "Umask", "0027"},
		{"userns", "Uid", "3001\t3001\t3001\t3001"},
	} {
		r, err := s.Role(c.role)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.Field(r.PID, c.field); got != c.want {
			t.Errorf("%s: %s is %q, want %q", c.role, c.field, got, c.want)
		}
	}
	for _, c := range []struct{ role, file, want string }{
		{"long args", "cmdline", "--argument-39=" + strings.Repeat("x", 300) + "\x00"},
		{"odd args", "cmdline", "/bin/odd name\x00\x00two words\x00new\nline\x00\"quoted\"\x00\xff\xfe\x00ü→\x00\x00"},
		{"one long arg", "cmdline", strings.Repeat("/long", 2500)},
		{"long title", "cmdline", strings.Repeat("umbra: a long title ", 5)},
		{"short title", "cmdline", "umbra: title changed"},
		{"session", "environ", "EMPTY=\x00SPACE=a b\x00NEWLINE=a\nb\x00NOT_UTF8=\xff\x00"},
		{"maps", "maps", "/tmp/mapped and gone (deleted)"},
		{"maps", "maps", "/memfd:umbra memory (deleted)"},
		{"maps", "maps", "/SYSV0000756d (deleted)"},
		{"maps", "maps", "[heap]"},
		{"limits", "oom_score_adj", "-321"},
		{"mountns", "mountinfo", `/mnt/with\040space`},
		{"mountns", "mountinfo", `/mnt/new\012line`},
		{"mountns", "mountinfo", " - overlay overlay "},
		{"deep cgroup", "cgroup", "/umbra/inner two/deep"},
		{"userns", "uid_map", "3000"},
	} {
		r, err := s.Role(c.role)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.Files[fmt.Sprintf("%d/%s", r.PID, c.file)]; !bytes.Contains(got, []byte(c.want)) {
			t.Errorf("%s: %s holds %.200q, which lacks %q", c.role, c.file, got, c.want)
		}
	}
	for name, want := range map[string]string{"uninterruptible": "D (disk sleep)", "no args": "S (sleeping)"} {
		if got := tree.Field(s.Tiny[name], "State"); got != want {
			t.Errorf("%s: state %q, want %q", name, got, want)
		}
	}
	if got := tree.Links[fmt.Sprintf("%d/exe", s.Tiny["deleted image"])]; got != "/tmp/image to go (deleted)" {
		t.Errorf("deleted image: exe %q", got)
	}
	many, err := s.Role("manymaps")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(tree.Files[fmt.Sprintf("%d/maps", many.PID)], []byte("\n")); n < 600 {
		t.Errorf("manymaps: %d mappings, want 600 or more", n)
	}
}

// checkSockets looks for a TCP socket in each state, and for odd unix sockets.
func checkSockets(t *testing.T, s *State, tree *ProcTree) {
	t.Helper()
	tcp := string(tree.Files["1/net/tcp"])
	states := map[string]bool{}
	for _, line := range strings.Split(tcp, "\n") {
		if f := strings.Fields(line); len(f) > 3 {
			states[f[3]] = true
		}
	}
	// TIME_WAIT, 06, lasts a minute only: see TestTimeWait.
	for _, want := range []string{"01", "02", "03", "04", "05", "08", "0A"} {
		if !states[want] {
			t.Errorf("no TCP socket in state %s:\n%s", want, tcp)
		}
	}
	for _, want := range []string{"@umbra abstract\n", "@umbra@zero@\n", "/run/sock/data gram\n", "/run/sock/seq\npacket\n"} {
		if !bytes.Contains(tree.Files["1/net/unix"], []byte(want)) {
			t.Errorf("no unix socket %q:\n%s", want, tree.Files["1/net/unix"])
		}
	}
	for _, name := range []string{"tcp6", "udp", "udp6", "raw", "raw6", "packet", "netlink", "icmp"} {
		if n := bytes.Count(tree.Files["1/net/"+name], []byte("\n")); n < 2 {
			t.Errorf("net/%s: %d lines, want a socket", name, n)
		}
	}
	inner, err := s.Role("netns")
	if err != nil {
		t.Fatal(err)
	}
	other := tree.Files[fmt.Sprintf("%d/net/tcp", inner.PID)]
	if !bytes.Contains(other, []byte("0100007F:1BEF")) {
		t.Errorf("the other network namespace has no port 7151:\n%s", other)
	}
	if dev := tree.Files[fmt.Sprintf("%d/net/dev", inner.PID)]; !bytes.Contains(dev, []byte("umbra-b:")) {
		t.Errorf("the other network namespace has no umbra-b:\n%s", dev)
	}
}

func checkNamespaces(t *testing.T, s *State, tree *ProcTree) {
	t.Helper()
	for role, ns := range map[string]string{
		"netns": "net", "mountns": "mnt", "otherns": "uts", "userns": "user", "limits": "",
	} {
		r, err := s.Role(role)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"net", "mnt", "uts", "user"} {
			mine, first := tree.Links[fmt.Sprintf("%d/ns/%s", r.PID, kind)], tree.Links["1/ns/"+kind]
			if !strings.HasPrefix(mine, kind+":[") || (mine == first) == (kind == ns) {
				t.Errorf("%s: %s namespace %q, init's %q", role, kind, mine, first)
			}
		}
	}
	r, err := s.Role("pidns")
	if err != nil {
		t.Fatal(err)
	}
	if got := tree.Field(r.PID, "NSpid"); !regexp.MustCompile(`^\d+\t1$`).MatchString(got) {
		t.Errorf("pidns: NSpid %q", got)
	}
}

// small is a guest for tests that look at the machine, not at its state.
func small() Config { return Config{MemMB: 256, Append: []string{"umbra.state=0"}} }

func TestAskErrors(t *testing.T) {
	g := Shared(t, small())
	ctx := within(t, time.Minute)
	for _, command := range []string{"cat /no/such/file", "nonsense", "readlink /proc", "kill x 9"} {
		if b, err := g.Ask(ctx, command); err == nil {
			t.Errorf("%s: answered %q", command, b)
		}
	}
	if b, err := g.Ask(ctx, "readlink /proc/1/exe"); err != nil || string(b) != "/init" {
		t.Errorf("after errors: %q, %v", b, err)
	}
}

func TestTimeWait(t *testing.T) {
	g := Shared(t, Config{MemMB: 256})
	ctx := within(t, time.Minute)
	if _, err := g.Ask(ctx, "exec timewait"); err != nil {
		t.Fatal(err)
	}
	b, err := g.Ask(ctx, "cat /proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	// 127.0.0.1:7123 in TIME_WAIT.
	if !bytes.Contains(b, []byte("0100007F:1BD3 0100007F:1B6C 06")) {
		t.Errorf("no socket in TIME_WAIT:\n%s", b)
	}
}

func TestPauseAndReset(t *testing.T) {
	g, err := Boot(within(t, bootTimeout), small())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ctx := within(t, 3*time.Minute)
	before, err := g.Ask(ctx, "cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	after, err := g.Ask(ctx, "cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(before, after) {
		t.Errorf("the boot id %s is the same after a reset", after)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	g, err := Boot(within(t, bootTimeout), small())
	if err != nil {
		t.Fatal(err)
	}
	pid, paths := g.PID(), []string{g.Dir(), g.RAMPath()}
	for _, p := range paths {
		if !exists(p) {
			t.Errorf("%s does not exist while the guest runs", p)
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range append(paths, fmt.Sprintf("/proc/%d", pid)) {
		if exists(p) {
			t.Errorf("%s is left", p)
		}
	}
}

func TestMachines(t *testing.T) {
	for name, c := range map[string]Config{
		"stock pc":  {Machine: "pc", RAM: RAMStock, CPUModel: "max,la57=off"},
		"memfd smp": {RAM: RAMMemfd, CPUs: 2},
		"numa":      {NUMA: 2, CPUs: 2, MemMB: 300},
		"serial":    {Serial: true},
	} {
		t.Run(name, func(t *testing.T) {
			if c.MemMB == 0 {
				c.MemMB = 256
			}
			c.Append = []string{"umbra.procs=20", "umbra.socks=50", "umbra.state=0"}
			g, err := Boot(within(t, bootTimeout), c)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			tree, err := g.Proc(within(t, time.Minute), "all", "status,cmdline,net,fd")
			if err != nil {
				t.Fatal(err)
			}
			idle, sockets := 0, map[string]bool{}
			for _, pid := range tree.PIDs() {
				if bytes.Contains(tree.Files[fmt.Sprintf("%d/cmdline", pid)], []byte("\x00--number\x00")) {
					idle++
				}
			}
			for _, l := range tree.Links {
				if strings.HasPrefix(l, "socket:") {
					sockets[l] = true
				}
			}
			if idle != 20 || len(sockets) != 50 {
				t.Errorf("%d processes and %d sockets, asked for 20 and 50", idle, len(sockets))
			}
		})
	}
}

func TestBootErrors(t *testing.T) {
	for name, c := range map[string]Config{
		"kernel":    {Kernel: "2.4"},
		"flavour":   {Flavour: "m68k"},
		"memory":    {MemMB: 1},
		"name":      {Name: "a b"},
		"parameter": {MemMB: 256, Append: []string{"umbra.nonsense=1"}},
		"QEMU":      {MemMB: 256, ExtraArgs: []string{"-device", "no-such-device"}},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := Boot(within(t, bootTimeout), c)
			if err == nil {
				g.Close()
				t.Fatal("booted")
			}
			t.Log(err)
		})
	}
	t.Run("archive", func(t *testing.T) {
		t.Setenv("UMBRA_LAB_CACHE", t.TempDir())
		t.Setenv("UMBRA_LAB_MIRROR", "http://127.0.0.1:9")
		_, err := FetchKernel(within(t, time.Minute), "6.1", "cloud-amd64")
		if err == nil || !strings.Contains(err.Error(), "127.0.0.1:9") {
			t.Errorf("an archive out of reach: %v", err)
		}
		if left, _ := os.ReadDir(os.Getenv("UMBRA_LAB_CACHE")); len(left) > 1 { // the lock
			t.Errorf("left in the cache: %v", left)
		}
	})
}
