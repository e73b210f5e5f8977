package main

import (
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func socketsCommand(a *app) *cobra.Command {
	var opts linux.SocketOptions
	return listCommand(a, listing[linux.Socket]{
		name: "sockets", group: groupObjects,
		short: "List sockets",
		long: `sockets lists the sockets of all network namespaces of a machine, as the files
under /proc/net of each would, and the processes that hold them: tcp, udp, raw,
unix, packet and netlink; listening, established, time-wait and half-open ones.`,
		example: "  umbra sockets web1\n  umbra sockets web1 --pid 412\n  umbra sockets web1 -o json",
		table: table.Options{
			Default: []string{"protocol", "state", "local_address", "remote_address", "uid", "inode", "netns", "processes"},
			Wide:    []string{"local_address", "remote_address", "processes"},
			Middle:  []string{"local_address", "remote_address"},
			Cells: map[string]func(any) string{
				"local_address": func(row any) string {
					s := row.(*linux.Socket)
					if s.Path != nil {
						return *s.Path
					}
					return endpoint(s.LocalAddress, s.LocalPort)
				},
				"remote_address": func(row any) string {
					s := row.(*linux.Socket)
					return endpoint(s.RemoteAddress, s.RemotePort)
				},
				"processes": func(row any) string { return holders(row.(*linux.Socket).Processes) },
			},
		},
		pid: &opts.PID, pidUsage: "only sockets that this process holds",
		read: func(v *kernel.View) ([]linux.Socket, error) { return linux.Sockets(v, opts) },
	})
}

// endpoint writes an address and a port as one.
func endpoint(addr *string, port *uint32) string {
	switch {
	case addr == nil && port == nil:
		return "-"
	case addr == nil:
		return fmt.Sprint(*port)
	case port == nil:
		return *addr
	}
	return net.JoinHostPort(*addr, fmt.Sprint(*port))
}

// holders writes who holds a socket: "412/sshd", each process once.
func holders(hs []linux.SockHolder) string {
	var out []string
	last := -1
	for _, h := range hs {
		if h.PID != last {
			out = append(out, fmt.Sprintf("%d/%s", h.PID, h.Comm))
		}
		last = h.PID
	}
	return orDash(strings.Join(out, " "))
}
