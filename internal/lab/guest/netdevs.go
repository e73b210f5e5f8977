package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the guest's interfaces.
const (
	dummy4, dummy6 = "10.66.0.1/24", "fd66::1/64"
	veth4, veth6   = "10.67.0.1/24", "fd67::1/64"
	peer4, peer6   = "10.67.0.2/24", "fd67::2/64"
)

// quietNetwork keeps interfaces from talking by themselves, and lets what waits
// for an answer that never comes wait for long.
func quietNetwork() error {
	for path, value := range map[string]string{
		"ipv6/conf/default/accept_dad":           "0",
		"ipv6/conf/all/accept_dad":               "0",
		"ipv6/conf/default/dad_transmits":        "0",
		"ipv6/conf/default/router_solicitations": "0",
		"ipv4/tcp_syn_retries":                   "100",
		"ipv4/tcp_synack_retries":                "100",
		"ipv4/tcp_orphan_retries":                "100",
		"ipv4/ping_group_range":                  "0 2147483647",
	} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// addAddresses gives a link addresses and sets it up.
func addAddresses(name string, cidrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	for _, c := range cidrs {
		addr, err := netlink.ParseAddr(c)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("interface %s: add %s: %w", name, c, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %s: set up: %w", name, err)
	}
	return nil
}

// setUpNetwork brings up lo and, with full, a dummy interface that swallows what
// is sent, a pair of veth and a bridge.
func setUpNetwork(full bool) error {
	if err := quietNetwork(); err != nil {
		return err
	}
	if err := addAddresses("lo"); err != nil || !full {
		return err
	}
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	veth := &netlink.Veth{LinkAttrs: attrs("umbra-a"), PeerName: "umbra-b"}
	veth.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0x66, 1}
	veth.PeerHardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0x66, 2}
	bridge := &netlink.Bridge{LinkAttrs: attrs("umbra-br")}
	dummy := &netlink.Dummy{LinkAttrs: attrs("umbra-dummy")}
	dummy.MTU = 1400
	for _, l := range []netlink.Link{dummy, veth, bridge} {
		if err := netlink.LinkAdd(l); err != nil {
			return fmt.Errorf("add interface %s: %w", l.Attrs().Name, err)
		}
	}
	if err := addAddresses("umbra-dummy", dummy4, dummy6, "10.66.0.2/24"); err != nil {
		return err
	}
	return addAddresses("umbra-a", veth4, veth6)
}

// moveToNamespace gives the other end of the veth pair to a process's network
// namespace.
func moveToNamespace(pid int) error {
	link, err := netlink.LinkByName("umbra-b")
	if err != nil {
		return fmt.Errorf("interface umbra-b: %w", err)
	}
	return netlink.LinkSetNsPid(link, pid)
}
