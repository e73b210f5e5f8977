package linux

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// TestNetdevs compares devices with the guest's own /proc/net/dev and
// /proc/net/if_inet6 of every network namespace, and with its /sys/class/net.
func TestNetdevs(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		// Counters go on while the guest runs: what is read lies between what it
		// says before and after.
		before := procNet(t, g)
		var devs []Netdev
		paused(t, g, func() {
			for _, batch := range []bool{false, true} {
				v := view(t, k, mem.Options{Batch: batch})
				var err error
				if devs, err = Netdevs(v); err != nil {
					t.Fatal(err)
				}
				for _, f := range v.Findings() {
					t.Errorf("finding: %v", f)
				}
			}
		})
		after := procNet(t, g)
		if len(devs) != len(after.counters) || len(devs) < least(t, 6) {
			t.Errorf("%d devices, the guest has %d", len(devs), len(after.counters))
		}
		for _, d := range devs {
			compareCounters(t, d, before, after, k.Banner())
			compareDevice(t, g, d, after.first)
		}
		compareAddresses(t, g, devs, after)
	})
}

// paused runs f while the guest stands still.
func paused(t *testing.T, g *lab.Guest, f func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := g.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Resume(ctx); err != nil {
			t.Error(err)
		}
	}()
	f()
}

// netText is what the guest says of its devices.
type netText struct {
	counters map[string][]uint64 // of /proc/net/dev, by "NETNS NAME"
	inet6    []string            // of /proc/net/if_inet6, sorted
	first    uint64              // the first network namespace
}

func procNet(t *testing.T, g *lab.Guest) netText {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tree, err := g.Proc(ctx, "all", "net,ns")
	if err != nil {
		t.Fatal(err)
	}
	ns := func(pid string) uint64 {
		return number(t, strings.TrimSuffix(strings.TrimPrefix(tree.Links[pid+"/ns/net"], "net:["), "]"), 10)
	}
	out := netText{counters: map[string][]uint64{}, first: ns("1")}
	for name, content := range tree.Files {
		pid, file, _ := strings.Cut(name, "/")
		for line := range strings.Lines(string(content)) {
			switch file {
			case "net/dev":
				device, rest, ok := strings.Cut(line, ":")
				if !ok {
					continue
				}
				var n []uint64
				for _, f := range strings.Fields(rest) {
					n = append(n, number(t, f, 10))
				}
				out.counters[fmt.Sprint(ns(pid), " ", strings.TrimSpace(device))] = n
			case "net/if_inet6":
				f := strings.Fields(line)
				b, err := hex.DecodeString(f[0])
				if err != nil {
					t.Fatal(err)
				}
				a, _ := netip.AddrFromSlice(b)
				out.inet6 = append(out.inet6, fmt.Sprintf("%d %s %v/%d %s %d", ns(pid), f[5], a, number(t, f[2], 16),
					map[string]string{"00": "global", "10": "host", "20": "link", "40": "site"}[f[3]], number(t, f[4], 16)))
			}
		}
	}
	slices.Sort(out.inet6)
	return out
}

func compareCounters(t *testing.T, d Netdev, before, after netText, banner string) {
	t.Helper()
	key := fmt.Sprint(d.NetNS, " ", d.Name)
	lo, hi := before.counters[key], after.counters[key]
	got := []*uint64{d.RxBytes, d.RxPackets, d.RxErrors, d.RxDropped, d.RxFifo, d.RxFrame, d.RxCompressed, d.Multicast,
		d.TxBytes, d.TxPackets, d.TxErrors, d.TxDropped, d.TxFifo, d.Collisions, d.TxCarrier, d.TxCompressed}
	if len(lo) != len(got) || len(hi) != len(got) {
		t.Errorf("%s: not in the guest's /proc/net/dev", key)
		return
	}
	// Modules have no types of their own before 5.11.
	if d.Kind != nil && *d.Kind != "dummy" && strings.Contains(banner, "Linux version 5.10.") {
		for i, n := range got {
			if n != nil {
				t.Errorf("%s: column %d is %d without the driver's types", key, i, *n)
			}
		}
		if len(d.Errors) != 1 || !strings.Contains(d.Errors[0], "counters") {
			t.Errorf("%s: errors %q", key, d.Errors)
		}
		return
	}
	if len(d.Errors) > 0 || d.Moved {
		t.Errorf("%s: moved %v, errors %q", key, d.Moved, d.Errors)
	}
	for i, n := range got {
		if n == nil || *n < lo[i] || *n > hi[i] {
			t.Errorf("%s: column %d is %v, the guest says %d to %d", key, i, show(n), lo[i], hi[i])
		}
	}
	if definite(t) && d.Name == "lo" && (d.RxBytes == nil || *d.RxBytes == 0) {
		t.Errorf("%s: nothing went through it", key)
	}
}

func show(n *uint64) string {
	if n == nil {
		return "unknown"
	}
	return fmt.Sprint(*n)
}

// compareDevice compares a device of the first namespace with /sys/class/net.
func compareDevice(t *testing.T, g *lab.Guest, d Netdev, first uint64) {
	t.Helper()
	if d.NetNS != first {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	mac := ""
	if d.MAC != nil {
		mac = *d.MAC
	}
	for file, got := range map[string]string{
		"address": mac, "ifindex": strconv.Itoa(d.Index), "mtu": fmt.Sprint(d.MTU),
		"operstate": d.State, "flags": fmt.Sprintf("%#x", d.RawFlags),
	} {
		b, err := g.Ask(ctx, "cat /sys/class/net/"+d.Name+"/"+file)
		if err != nil {
			t.Fatal(err)
		}
		if want := string(bytes.TrimSpace(b)); got != want {
			t.Errorf("%s: %s is %q, the guest says %q", d.Name, file, got, want)
		}
	}
}

// compareAddresses compares all IPv6 addresses, and the first namespace's IPv4 ones.
func compareAddresses(t *testing.T, g *lab.Guest, devs []Netdev, want netText) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var six, four []string
	for _, d := range devs {
		for _, a := range d.Addresses {
			switch {
			case strings.Contains(a.Address, ":"):
				six = append(six, fmt.Sprintf("%d %s %s/%d %s %d", d.NetNS, d.Name, a.Address, a.Prefix, a.Scope, a.Flags&0xff)) // all that fits its column
			case d.NetNS == want.first:
				four = append(four, a.Address)
			}
		}
	}
	slices.Sort(six)
	if !slices.Equal(six, want.inet6) || len(six) < least(t, 4) {
		t.Errorf("IPv6 addresses\n%s\nthe guest says\n%s", strings.Join(six, "\n"), strings.Join(want.inet6, "\n"))
	}
	// The local routing table has each local address as "|-- ADDRESS" and behind it
	// "/32 host LOCAL".
	trie, err := g.Ask(ctx, "cat /proc/net/fib_trie")
	if err != nil {
		t.Fatal(err)
	}
	var local []string
	leaf := ""
	for line := range strings.Lines(string(trie)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "|--":
			leaf = f[1]
		case len(f) == 3 && f[2] == "LOCAL" && f[0] == "/32":
			local = append(local, leaf)
		}
	}
	slices.Sort(four)
	slices.Sort(local)
	local = slices.Compact(local)
	if !slices.Equal(four, local) || len(four) < least(t, 3) {
		t.Errorf("IPv4 addresses %q, the guest says %q", four, local)
	}
	comparePrefixes(t, g, devs, want.first)
}

// comparePrefixes checks that each IPv4 network the guest routes to a device is
// that of an address of the device.
func comparePrefixes(t *testing.T, g *lab.Guest, devs []Netdev, first uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b, err := g.Ask(ctx, "cat /proc/net/route")
	if err != nil {
		t.Fatal(err)
	}
	networks := map[string]bool{}
	for _, d := range devs {
		for _, a := range d.Addresses {
			if p, err := netip.ParsePrefix(fmt.Sprintf("%s/%d", a.Address, a.Prefix)); err == nil && d.NetNS == first {
				networks[d.Name+" "+p.Masked().String()] = true
			}
		}
	}
	routes := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 8 || f[0] == "Iface" || f[2] != "00000000" {
			continue
		}
		network, mask := strings.Fields(address(t, f[1]+":0"))[0], number(t, f[7], 16)
		bits := 0
		for ; mask != 0; mask &= mask - 1 {
			bits++
		}
		routes++
		if want := fmt.Sprintf("%s %s/%d", f[0], network, bits); !networks[want] {
			t.Errorf("the guest has network %s, which no address has: %v", want, networks)
		}
	}
	if routes == 0 && definite(t) {
		t.Error("the guest has no IPv4 route")
	}
}
