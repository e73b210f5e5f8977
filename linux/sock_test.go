package linux

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// TestSockets compares all sockets with the guest's own /proc/net of every network
// namespace, and who holds them with its /proc/PID/fd.
func TestSockets(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		timeWaits(t, g)
		tree := ask(t, g, "all", "net,ns,fd,comm")
		want := guestSockets(t, tree)
		for _, batch := range []bool{false, true} {
			v := view(t, k, mem.Options{Batch: batch})
			socks, err := Sockets(v, SocketOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Findings() {
				t.Errorf("finding: %v", f)
			}
			compareSocketRows(t, socks, want)
			comparePacketQueues(t, socks, tree)
			compareHolders(t, socks, tree)
			checkCoverage(t, socks)
			if rounds := v.Snapshot().Stats().Rounds; batch && rounds > 16 {
				t.Errorf("%d sockets in %d rounds, more than 16", len(socks), rounds)
			}
		}
	})
}

// timeWaits makes fresh TIME_WAIT sockets, which last a minute.
func timeWaits(t *testing.T, g *lab.Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b, err := g.Ask(ctx, "exec timewait")
	if err != nil {
		t.Fatal(err)
	}
	var r lab.Role
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Ask(ctx, fmt.Sprintf("kill %d 9", r.PID)); err != nil {
		t.Fatal(err)
	}
}

// compareSocketRows compares both sides' rows as multisets of lines.
func compareSocketRows(t *testing.T, socks []Socket, want map[string]int) {
	t.Helper()
	want = maps.Clone(want)
	for _, s := range socks {
		if len(s.Errors) > 0 || s.Moved {
			t.Errorf("%s: moved %v, errors %q", rowText(s), s.Moved, s.Errors)
		}
		line := rowText(s)
		if want[line]--; want[line] < 0 {
			t.Errorf("not in the guest's /proc: %s", line)
		}
	}
	for line, n := range want {
		if n > 0 {
			t.Errorf("missing: %s", line)
		}
	}
}

// comparePacketQueues compares what waits in packet sockets: at least what the
// guest said, since packets come in (ARP for a neighbour that is not there) until
// it stands still.
func comparePacketQueues(t *testing.T, socks []Socket, tree *lab.ProcTree) {
	t.Helper()
	want := map[uint64]uint64{}
	waiting := 0
	for line := range strings.Lines(string(tree.Files["1/net/packet"])) {
		if f := strings.Fields(line); f[0] != "sk" {
			want[number(t, f[8], 10)] = number(t, f[6], 10)
		}
	}
	for _, s := range socks {
		if s.Protocol != "packet" {
			continue
		}
		if at, ok := want[s.Inode]; ok && (s.RxQueue == nil || uint64(*s.RxQueue) < at) {
			t.Errorf("%s: rx_queue %v, the guest said %d", rowText(s), s.RxQueue, at)
		}
		if s.RxQueue != nil && *s.RxQueue > 0 {
			waiting++
		}
	}
	if waiting == 0 && definite(t) {
		t.Error("no packet socket has anything waiting")
	}
}

// rowText writes a row as guestSockets writes what the guest says.
func rowText(s Socket) string {
	opt := func(n *uint32) string {
		if n == nil {
			return "-"
		}
		return fmt.Sprint(*n)
	}
	head := fmt.Sprintf("%d %s", s.NetNS, s.Protocol)
	switch s.Protocol {
	case "unix":
		path := "-"
		if s.Path != nil {
			path = *s.Path
		}
		return fmt.Sprintf("%s refs %d listen %v type %s state %d inode %d path %q", head, s.Refs, *s.State == "LISTEN", *s.Type, s.Code, s.Inode, path)
	case "packet":
		device := 0
		if s.Interface != nil {
			device = *s.Interface
		}
		return fmt.Sprintf("%s refs %d type %s protocol %d interface %d uid %d inode %d", head, s.Refs, *s.Type, *s.Number, device, s.UID, s.Inode)
	case "netlink":
		return fmt.Sprintf("%s protocol %d port %d rx %s tx %s refs %d inode %d", head, *s.Number, *s.LocalPort, opt(s.RxQueue), opt(s.TxQueue), s.Refs, s.Inode)
	}
	return fmt.Sprintf("%s %s %d %s %d state %d tx %s rx %s uid %d inode %d refs %d", head, *s.LocalAddress, *s.LocalPort,
		*s.RemoteAddress, *s.RemotePort, s.Code, opt(s.TxQueue), opt(s.RxQueue), s.UID, s.Inode, s.Refs)
}

// guestSockets returns the lines of the guest's /proc/net of each namespace, in a
// form that rowText writes too, and how often each comes.
func guestSockets(t *testing.T, tree *lab.ProcTree) map[string]int {
	t.Helper()
	out := map[string]int{}
	namespaces := 0
	for name, content := range tree.Files {
		pid, rest, _ := strings.Cut(name, "/")
		protocol, ok := strings.CutPrefix(rest, "net/")
		if !ok {
			continue
		}
		if protocol == "tcp" {
			namespaces++
		}
		ns := strings.TrimSuffix(strings.TrimPrefix(tree.Links[pid+"/ns/net"], "net:["), "]")
		for _, line := range guestLines(t, protocol, content) {
			out[ns+" "+protocol+" "+line]++
		}
	}
	if namespaces < 2 || len(out) < least(t, 60) {
		t.Fatalf("the guest told of %d sockets in %d network namespaces only", len(out), namespaces)
	}
	return out
}

// unixEntry begins a line; a kernel without randomness yet prints no hashed addresses.
var unixEntry = regexp.MustCompile(`(?m)^([0-9a-f]{8,16}|\(_*ptrval_*\)): `)

func guestLines(t *testing.T, protocol string, content []byte) (out []string) {
	t.Helper()
	switch protocol {
	case "unix":
		for _, e := range unixEntry.Split(string(content), -1)[1:] {
			f := strings.SplitN(strings.TrimSuffix(e, "\n"), " ", 6)
			inode, path, named := strings.Cut(strings.TrimLeft(f[5], " "), " ")
			if !named {
				path = "-"
			}
			out = append(out, fmt.Sprintf("refs %d listen %v type %s state %d inode %s path %q", number(t, f[0], 16),
				f[2] == "00010000", typeName(t, f[3]), number(t, f[4], 16), inode, path))
		}
		return out
	case "packet", "netlink", "tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6":
	default:
		return nil
	}
	for i, line := range bytes.Split(bytes.TrimSpace(content), []byte("\n")) {
		f := strings.Fields(string(line))
		if i == 0 {
			continue
		}
		switch protocol {
		case "packet":
			out = append(out, fmt.Sprintf("refs %s type %s protocol %d interface %s uid %s inode %s",
				f[1], typeName(t, f[2]), number(t, f[3], 16), f[4], f[7], f[8]))
		case "netlink":
			out = append(out, fmt.Sprintf("protocol %s port %s rx %s tx %s refs %s inode %s", f[1], f[2], f[4], f[5], f[7], f[9]))
		default:
			tx, rx, _ := strings.Cut(f[4], ":")
			out = append(out, fmt.Sprintf("%s %s state %d tx %d rx %d uid %s inode %s refs %s", address(t, f[1]), address(t, f[2]),
				number(t, f[3], 16), number(t, tx, 16), number(t, rx, 16), f[7], f[9], f[10]))
		}
	}
	return out
}

func number(t *testing.T, s string, base int) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, base, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func typeName(t *testing.T, s string) string {
	t.Helper()
	return map[uint64]string{1: "stream", 2: "dgram", 3: "raw", 5: "seqpacket"}[number(t, s, 16)]
}

// address turns "0100007F:1B59", words in the guest's byte order, into "127.0.0.1 7001".
func address(t *testing.T, s string) string {
	t.Helper()
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+4 <= len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		t.Fatalf("address %q", s)
	}
	return fmt.Sprintf("%v %d", a, number(t, port, 16))
}

// compareHolders compares who holds each socket with the links in /proc/PID/fd.
func compareHolders(t *testing.T, socks []Socket, tree *lab.ProcTree) {
	t.Helper()
	want := map[uint64][]string{}
	for name, target := range tree.Links {
		pid, rest, _ := strings.Cut(name, "/")
		fd, isFD := strings.CutPrefix(rest, "fd/")
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		if !isFD || !isSocket {
			continue
		}
		comm := bytes.TrimSuffix(tree.Files[pid+"/comm"], []byte("\n"))
		n := number(t, strings.TrimSuffix(inode, "]"), 10)
		want[n] = append(want[n], fmt.Sprintf("%s %q %s", pid, comm, fd))
	}
	shared := 0
	for _, s := range socks {
		var got []string
		for _, h := range s.Processes {
			got = append(got, fmt.Sprintf("%d %q %d", h.PID, h.Comm, h.FD))
		}
		if len(got) > 1 {
			shared++
		}
		w := want[s.Inode]
		slices.Sort(got)
		slices.Sort(w)
		if !slices.Equal(got, w) {
			t.Errorf("%s: held by %q, the guest says %q", rowText(s), got, w)
		}
	}
	if shared < 2 {
		t.Errorf("%d sockets held twice, want two or more", shared)
	}
}

// checkCoverage fails when the guest lacks the cases the comparison is for.
func checkCoverage(t *testing.T, socks []Socket) {
	t.Helper()
	if !definite(t) {
		return
	}
	missing := map[string]bool{}
	for _, p := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "icmp", "unix", "packet", "netlink"} {
		missing[p] = true
	}
	for _, p := range []string{"tcp", "tcp6"} {
		for _, state := range []string{"ESTABLISHED", "LISTEN", "SYN_RECV", "TIME_WAIT"} {
			missing[p+" "+state] = true
		}
	}
	for _, state := range []string{"SYN_SENT", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT"} {
		missing["tcp "+state] = true
	}
	for _, s := range socks {
		delete(missing, s.Protocol)
		if s.State != nil {
			delete(missing, s.Protocol+" "+*s.State)
		}
	}
	for m := range missing {
		t.Errorf("the guest has no %s socket", m)
	}
}

// TestSocketsOfProcess lists what one process holds.
func TestSocketsOfProcess(t *testing.T) {
	g := lab.Shared(t, lab.Config{Kernel: "6.1", MemMB: 384})
	k := attach(t, g)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	state, err := g.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	role, err := state.Role("unixsockets")
	if err != nil {
		t.Fatal(err)
	}
	socks, err := Sockets(view(t, k, mem.Options{}), SocketOptions{PID: role.PID})
	if err != nil {
		t.Fatal(err)
	}
	if len(socks) < 10 {
		t.Errorf("process %d has %d sockets", role.PID, len(socks))
	}
	for _, s := range socks {
		if s.Protocol != "unix" || !slices.ContainsFunc(s.Processes, func(h SockHolder) bool { return h.PID == role.PID }) {
			t.Errorf("listed for process %d: %s", role.PID, rowText(s))
		}
	}
}

// TestSocketRounds counts the round trips for few and for many tasks and sockets.
func TestSocketRounds(t *testing.T) {
	rounds := map[int]int{}
	for _, n := range []int{50, 1000} {
		g := lab.Shared(t, lab.Config{Kernel: "6.1", MemMB: 384, Append: []string{
			"umbra.state=0", fmt.Sprintf("umbra.procs=%d", n), fmt.Sprintf("umbra.socks=%d", n)}})
		k := attach(t, g)
		ask(t, g, "1", "stat") // a guest that moves takes rounds of its own
		v := view(t, k, mem.Options{Batch: true})
		socks, err := Sockets(v, SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		held := 0
		for _, s := range socks {
			held += len(s.Processes)
		}
		if held < n*9/10 {
			t.Errorf("%d sockets held, asked the guest for %d", held, n)
		}
		rounds[n] = v.Snapshot().Stats().Rounds
		t.Logf("%d sockets in %d rounds, %d pages", len(socks), rounds[n], v.Snapshot().Stats().Pages)
		if rounds[n] > 16 {
			t.Errorf("%d sockets in %d rounds, more than 16", len(socks), rounds[n])
		}
	}
	// The PID IDR is a level deeper, and hash chains are longer: not twenty times as long.
	if rounds[1000] > rounds[50]+4 {
		t.Errorf("%d rounds for 50 tasks, %d for 1000", rounds[50], rounds[1000])
	}
}
