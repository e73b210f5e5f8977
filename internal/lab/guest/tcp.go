package main

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// sockaddr turns "127.0.0.1:80" or "[::1]:80" into what system calls take.
func sockaddr(s string) (unix.Sockaddr, int, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, 0, err
	}
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, unix.AF_INET, nil
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}, unix.AF_INET6, nil
}

// bound returns a socket of a kind bound to local.
func bound(local string, kind, protocol int) (int, error) {
	sa, family, err := sockaddr(local)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return -1, fmt.Errorf("bind to %s: %w", local, err)
	}
	return fd, nil
}

func listen(local string, backlog int) (int, error) {
	fd, err := bound(local, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, backlog)
}

// dial connects a socket of a kind from local, "" for any, to remote.
func dial(local, remote string, kind int) (int, error) {
	sa, family, err := sockaddr(remote)
	if err != nil {
		return -1, err
	}
	var fd int
	if local == "" {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	} else {
		fd, err = bound(local, kind, 0)
	}
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return -1, fmt.Errorf("connect to %s: %w", remote, err)
	}
	return fd, nil
}

// pair returns the two ends of a TCP connection between local and a listener.
func pair(listener int, local, remote string) (client, server int, err error) {
	if client, err = dial(local, remote, unix.SOCK_STREAM); err != nil {
		return -1, -1, err
	}
	server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	return client, server, err
}

// fill writes until the socket takes no more.
func fill(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	for range 100000 {
		_, err := unix.Write(fd, make([]byte, 4096))
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return errors.New("never full")
}

// tcp is a process with TCP sockets in every state that lasts.
func tcp() error {
	m := newMaker()
	l4, err := listen("0.0.0.0:7001", 8)
	m.fd("listen", l4, err)
	l6, err := listen("[::]:7006", 8)
	m.fd("listen6", l6, err)
	waiting, err := listen("127.0.0.1:7002", 5)
	m.fd("listen with a connection waiting", waiting, err)
	c, err := dial("127.0.0.1:7102", "127.0.0.1:7002", unix.SOCK_STREAM)
	m.fd("not accepted", c, err)

	both := func(name string, listener int, local, remote string) (int, int) {
		c, s, err := pair(listener, local, remote)
		m.fd(name+" client", c, err)
		m.fd(name+" server", s, err)
		return c, s
	}
	both("established", l4, "127.0.0.1:7101", "127.0.0.1:7001")
	both("established6", l6, "[::1]:7106", "[::1]:7006")
	both("mapped", l6, "127.0.0.1:7107", "127.0.0.1:7006")
	both("on dummy", l4, "10.66.0.1:7108", "10.66.0.2:7001")
	c, _ = both("received", l4, "127.0.0.1:7103", "127.0.0.1:7001")
	m.do("send", func() error { _, err := unix.Write(c, make([]byte, 1234)); return err })
	c, _ = both("full", l4, "127.0.0.1:7104", "127.0.0.1:7001")
	m.do("fill", func() error { return fill(c) })
	c, _ = both("half closed", l4, "127.0.0.1:7105", "127.0.0.1:7001")
	m.do("close one side", func() error { return unix.Shutdown(c, unix.SHUT_WR) })

	c, err = dial("", "10.66.0.77:9", unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	m.fd("syn sent", c, err)
	deferred(m, "syn received", "127.0.0.1:7003", "127.0.0.1:7113")
	deferred(m, "syn received6", "[::1]:7008", "[::1]:7118")
	m.do("time wait", func() error { return timeWait(l4, "127.0.0.1:7001", "127.0.0.1:7121") })
	m.do("time wait6", func() error { return timeWait(l6, "[::1]:7006", "[::1]:7122") })
	m.do("orphan", func() error { return orphan(l4, "127.0.0.1:7131", m) })
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	m.fd("unbound", fd, err)
	fd, err = bound("127.0.0.1:7009", unix.SOCK_STREAM, 0)
	m.fd("bound only", fd, err)
	fd, err = listen("127.0.0.1:7010", 1)
	m.fd("listen on a device", fd, err)
	m.do("bind to device", func() error { return unix.BindToDevice(fd, "lo") })
	return m.stay()
}

// deferred makes a request socket that lasts: a listener that takes a connection
// only when data comes, and a client that never sends any.
func deferred(m *maker, name, remote, local string) {
	l, err := listen(remote, 4)
	m.fd(name+" listener", l, err)
	m.do(name, func() error {
		return unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 100000)
	})
	c, err := dial(local, remote, unix.SOCK_STREAM)
	m.fd(name+" client", c, err)
}

// timeWait leaves the client's side of a connection in TIME_WAIT, for a minute.
func timeWait(listener int, remote, local string) error {
	c, s, err := pair(listener, local, remote)
	if err != nil {
		return err
	}
	if err := unix.Close(c); err != nil {
		return err
	}
	// The end of the stream must have come before the other side is closed.
	if n, err := unix.Read(s, make([]byte, 1)); n != 0 || err != nil {
		return fmt.Errorf("wait for the end: %d bytes, %v", n, err)
	}
	return unix.Close(s)
}

// orphan leaves a connection that no process holds, with data not yet taken.
func orphan(listener int, local string, m *maker) error {
	c, s, err := pair(listener, local, "127.0.0.1:7001")
	if err != nil {
		return err
	}
	m.fd("peer of an orphan", s, nil)
	if err := fill(c); err != nil {
		return err
	}
	return unix.Close(c)
}

// timeWaits renews what tcp left in TIME_WAIT, and ends.
func timeWaits() error {
	m := newMaker()
	l, err := listen("127.0.0.1:7020", 4)
	m.fd("listen", l, err)
	l6, err := listen("[::1]:7021", 4)
	m.fd("listen6", l6, err)
	m.do("time wait", func() error { return timeWait(l, "127.0.0.1:7020", "127.0.0.1:7123") })
	m.do("time wait6", func() error { return timeWait(l6, "[::1]:7021", "[::1]:7124") })
	return m.stay()
}
