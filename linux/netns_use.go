package linux

import (
	"slices"

	"github.com/umbravm/umbra/mem"
)

// A walk that is done anew may have entered works that it does not lead to any more.
// What counts is what the works, as they were run last, lead to from the start.

// netsInUse returns the network namespaces of tasks, of listed sockets and in the
// kernel's list, in the order they were met.
func (r *sockReader) netsInUse() []*netWork {
	nets, _ := r.inUse()
	return nets
}

// tablesInUse returns the tables of sockets that the kernel has.
func (r *sockReader) tablesInUse() []*sockTable {
	_, tables := r.inUse()
	return tables
}

// devicesInUse returns the devices of all network namespaces.
func (r *sockReader) devicesInUse() (devs []*devWork) {
	seen := make(map[*devWork]bool)
	for _, n := range r.netsInUse() {
		for _, d := range n.devs {
			if !seen[d] && d.net == n {
				seen[d] = true
				devs = append(devs, d)
			}
		}
	}
	return devs
}

func (r *sockReader) inUse() (nets []*netWork, tables []*sockTable) {
	netSeen, tableSeen := make(map[mem.Virt]bool), make(map[*sockTable]bool)
	addNet := func(n *netWork) {
		if n != nil && !netSeen[n.addr] {
			netSeen[n.addr] = true
			nets = append(nets, n)
		}
	}
	addTable := func(t *sockTable) {
		for ; t != nil && !tableSeen[t]; t = t.next {
			tableSeen[t] = true
			tables = append(tables, t)
		}
	}
	if r.ids != nil {
		for _, p := range r.ids.pids {
			addNet(p.net)
		}
	}
	r.listedNets(addNet)
	for _, t := range slices.Concat(r.global, r.links.tables) {
		addTable(t)
	}
	for _, n := range nets {
		for _, t := range n.tables {
			addTable(t)
		}
	}
	// What is only met through sockets is being set up or taken apart, and may not have
	// its own tables.
	for _, t := range tables {
		for _, c := range t.chains {
			for _, s := range c.socks {
				if s.err == nil {
					addNet(r.netAt(s.net))
				}
			}
		}
	}
	return nets, tables
}

// listedNets calls add with the network namespaces in the kernel's list, to where it
// breaks off.
func (r *sockReader) listedNets(add func(*netWork)) {
	seen := make(map[mem.Virt]bool)
	if r.nets.err != nil {
		return
	}
	for node := r.nets.first; node != r.nets.head && !seen[node]; {
		seen[node] = true
		n := r.netAt(node - mem.Virt(r.net.List.Offset))
		if add(n); n.nextErr != nil {
			return
		}
		node = n.next
	}
}
