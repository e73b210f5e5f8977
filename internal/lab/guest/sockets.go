package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// datagrams is a process with UDP and raw sockets.
func datagrams() error {
	m := newMaker()
	add := func(name, local string, kind, protocol int) int {
		fd, err := bound(local, kind, protocol)
		return m.fd(name, fd, err)
	}
	add("udp", "0.0.0.0:7201", unix.SOCK_DGRAM, 0)
	add("udp6", "[::]:7206", unix.SOCK_DGRAM, 0)
	add("udp waiting", "127.0.0.1:7202", unix.SOCK_DGRAM, 0)
	add("udp6 waiting", "[::1]:7207", unix.SOCK_DGRAM, 0)
	fd, err := dial("127.0.0.1:7203", "127.0.0.1:7202", unix.SOCK_DGRAM)
	m.fd("udp connected", fd, err)
	m.do("send", func() error { _, err := unix.Write(fd, make([]byte, 321)); return err })
	fd6, err := dial("[::1]:7208", "[::1]:7207", unix.SOCK_DGRAM)
	m.fd("udp6 connected", fd6, err)
	m.do("send6", func() error { _, err := unix.Write(fd6, make([]byte, 100)); return err })
	add("reuse", "127.0.0.1:7204", unix.SOCK_DGRAM, 0)
	lite, err := bound("127.0.0.1:7205", unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
	m.maybe("udplite", lite, err) // gone in 7.x
	add("raw", "127.0.0.1:0", unix.SOCK_RAW, unix.IPPROTO_ICMP)
	add("raw any", "0.0.0.0:0", unix.SOCK_RAW, 253)
	add("raw6", "[::1]:0", unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	ping, err := bound("127.0.0.1:77", unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	m.fd("ping", ping, err)
	return m.stay()
}

// unixSockets is a process with sockets of the local domain.
func unixSockets() error {
	m := newMaker()
	m.do("directory", func() error { return os.MkdirAll("/run/sock", 0o755) })
	add := func(name, path string, kind int) int {
		fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
		m.fd(name, fd, err)
		m.do("bind "+name, func() error { return unix.Bind(fd, &unix.SockaddrUnix{Name: path}) })
		return fd
	}
	l := add("stream listener", "/run/sock/stream", unix.SOCK_STREAM)
	m.do("listen", func() error { return unix.Listen(l, 4) })
	connect := func(name, path string, kind int) int {
		fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
		m.fd(name, fd, err)
		m.do(name, func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
		return fd
	}
	c := connect("connected client", "/run/sock/stream", unix.SOCK_STREAM)
	s, _, err := unix.Accept(l)
	m.fd("connected server", s, err)
	m.do("write", func() error { _, err := unix.Write(c, make([]byte, 55)); return err })
	connect("waiting client", "/run/sock/stream", unix.SOCK_STREAM)
	add("datagram", "/run/sock/data gram", unix.SOCK_DGRAM)
	d := connect("datagram client", "/run/sock/data gram", unix.SOCK_DGRAM)
	m.do("send", func() error { _, err := unix.Write(d, make([]byte, 66)); return err })
	q := add("packets", "/run/sock/seq\npacket", unix.SOCK_SEQPACKET)
	m.do("listen", func() error { return unix.Listen(q, 1) })
	a := add("abstract", "@umbra abstract", unix.SOCK_STREAM)
	m.do("listen", func() error { return unix.Listen(a, 1) })
	add("abstract with zeros", "@umbra\x00zero\x00", unix.SOCK_DGRAM)
	add("deleted", "/run/sock/deleted", unix.SOCK_STREAM)
	m.do("delete", func() error { return os.Remove("/run/sock/deleted") })
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	m.fd("unbound", fd, err)
	for name, kind := range map[string]int{"pair": unix.SOCK_STREAM, "datagram pair": unix.SOCK_DGRAM} {
		p, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
		m.fd(name+" one", p[0], err)
		m.fd(name+" two", p[1], err)
	}
	m.do("in flight", func() error { return inFlight(m) })
	return m.stay()
}

// inFlight leaves a socket that only an unread message holds.
func inFlight(m *maker) error {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	m.fd("carrier one", p[0], err)
	m.fd("carrier two", p[1], err)
	fd, err := bound("127.0.0.1:7211", unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(p[0], []byte("x"), unix.UnixRights(fd), nil, 0); err != nil {
		return err
	}
	return unix.Close(fd)
}

// links is a process with packet and netlink sockets.
func links() error {
	m := newMaker()
	packet := func(name string, kind int, protocol uint16, device string) {
		swapped := protocol<<8 | protocol>>8
		fd, err := unix.Socket(unix.AF_PACKET, kind, int(swapped))
		m.fd(name, fd, err)
		if device == "" {
			return
		}
		m.do(name, func() error {
			index, err := deviceIndex(device)
			if err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swapped, Ifindex: index})
		})
	}
	packet("packet", unix.SOCK_RAW, unix.ETH_P_ARP, "")
	packet("packet on a device", unix.SOCK_DGRAM, unix.ETH_P_ALL, "umbra-dummy")
	netlink := func(name string, protocol int, groups uint32) {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, protocol)
		m.fd(name, fd, err)
		m.do(name, func() error { return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}) })
	}
	netlink("netlink route", unix.NETLINK_ROUTE, 0x11)
	netlink("netlink uevent", unix.NETLINK_KOBJECT_UEVENT, 1)
	netlink("netlink generic", unix.NETLINK_GENERIC, 0)
	return m.stay()
}

func deviceIndex(name string) (int, error) {
	b, err := os.ReadFile("/sys/class/net/" + name + "/ifindex")
	if err != nil {
		return 0, err
	}
	var n int
	_, err = fmt.Sscan(string(b), &n)
	return n, err
}

// shared is a process that holds sockets together with a child: one the child got
// when it was started, one that was sent to it.
func shared() error {
	m := newMaker()
	inherited, err := listen("127.0.0.1:7301", 2)
	m.fd("inherited", inherited, err)
	sent, err := bound("127.0.0.1:7302", unix.SOCK_DGRAM, 0)
	m.fd("sent", sent, err)
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	m.fd("carrier", p[0], err)
	m.do("child", func() error {
		if err := unix.Sendmsg(p[0], []byte("x"), unix.UnixRights(sent), nil, 0); err != nil {
			return err
		}
		child := roleProcess("sharer")
		child.files = []int{inherited, p[1]}
		c, err := spawn(child)
		m.info["child"] = c.PID
		return err
	})
	m.do("close", func() error { return unix.Close(p[1]) })
	return m.stay()
}

// sharer is shared's child: it gets descriptors behind readyFD.
func sharer() error {
	m := newMaker()
	m.do("receive", func() error {
		oob := make([]byte, 64)
		_, n, _, _, err := unix.Recvmsg(readyFD+2, make([]byte, 1), oob, 0)
		if err != nil {
			return err
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(msgs) != 1 {
			return fmt.Errorf("%d messages: %w", len(msgs), err)
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			return err
		}
		m.fd("sent", fds[0], nil)
		m.fd("inherited", readyFD+1, nil)
		return nil
	})
	return m.stay()
}

// manySockets is a process with UMBRA_COUNT sockets: half are ends of TCP
// connections, the rest UDP and unix ones.
func manySockets() error {
	m := newMaker()
	var n int
	m.do("count", func() error { _, err := fmt.Sscan(os.Getenv("UMBRA_COUNT"), &n); return err })
	m.do("limit", func() error {
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(n + 100), Max: uint64(n + 100)})
	})
	l, err := listen("127.0.0.1:7400", 128)
	m.fd("listen", l, err)
	m.do("sockets", func() error {
		for i := 1; i < n; i++ { // the listener is one
			if err := oneMore(i, n, l); err != nil {
				return fmt.Errorf("socket %d of %d: %w", i, n, err)
			}
			if i%4 == 0 {
				i++ // a connection is two
			}
		}
		return nil
	})
	return m.stay()
}

func oneMore(i, n, listener int) error {
	var err error
	switch {
	case i%4 == 0 && i+1 < n:
		_, _, err = pair(listener, "", "127.0.0.1:7400")
	case i%4 == 2:
		_, err = bound("127.0.0.1:0", unix.SOCK_DGRAM, 0)
	default:
		_, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	}
	return err
}
