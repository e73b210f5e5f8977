package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/table"
)

func netdevsCommand(a *app) *cobra.Command {
	return listCommand(a, listing[linux.Netdev]{
		name: "netdevs", group: groupObjects,
		short: "List network devices",
		long: `netdevs lists the network devices of all network namespaces with their addresses
and counters. A counter that the device's driver keeps in a way of its own is "-",
null in json, unless umbra knows that way.`,
		example: "  umbra netdevs web1\n  umbra netdevs web1 -o json",
		table: table.Options{
			Default: []string{"netns", "index", "name", "kind", "state", "mtu", "mac", "rx_bytes", "tx_bytes", "addresses"},
			Wide:    []string{"addresses"},
			Cells: map[string]func(any) string{
				"addresses": func(row any) string {
					var out []string
					for _, a := range row.(*linux.Netdev).Addresses {
						out = append(out, fmt.Sprintf("%s/%d", a.Address, a.Prefix))
					}
					return orDash(strings.Join(out, " "))
				},
			},
		},
		read: linux.Netdevs,
	})
}
