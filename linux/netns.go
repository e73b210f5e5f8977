package linux

import (
	"cmp"
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// netLayout is include/net/net_namespace.h and include/net/netns.
type netLayout struct {
	Inum        btf.Field `btf:"net.ns.inum"`
	List        btf.Field `btf:"net.list"`
	DeathRow    btf.Field `btf:"net.ipv4.tcp_death_row"`
	HashInfo    btf.Field `btf:"net.ipv4.tcp_death_row.hashinfo inet_timewait_death_row.hashinfo"` // behind a pointer in 5.18 to 6.0
	UDPTable    btf.Field `btf:"net.ipv4.udp_table ?"`                                             // since 6.2
	UnixBuckets btf.Field `btf:"net.unx.table.buckets ?"`                                          // since 6.0
	PacketList  btf.Field `btf:"net.packet.sklist ?"`                                              // not with CONFIG_PACKET=n
}

func (r *sockReader) beginNets() error {
	head, err := r.v.Symbol("net_namespace_list")
	if err != nil {
		return err
	}
	init, err := r.v.Symbol("init_net")
	if err != nil {
		return err
	}
	r.netAt(init)
	r.nets = enqueue(r.q, workNetList, head, func() *netListWork { return &netListWork{r: r, head: head} })
	return nil
}

// netListWork is the head of the list of network namespaces.
type netListWork struct {
	r     *sockReader
	head  mem.Virt
	first mem.Virt
	err   error
}

func (n *netListWork) run(w *kernel.Walk) {
	w.Guard(n.head, link)
	n.first = w.Pointer(n.head)
	if n.err = w.Err(); n.err == nil {
		n.r.netNode(n.first)
	}
}

// netWork is one network namespace.
type netWork struct {
	r       *sockReader
	addr    mem.Virt
	inum    uint64
	next    mem.Virt     // in the list of all
	tables  []*sockTable // of its own
	devs    []*devWork
	inumErr error
	nextErr error
	tabErr  error
}

// netAt returns the namespace at addr.
func (r *sockReader) netAt(addr mem.Virt) *netWork {
	n := enqueue(r.q, workNet, addr, func() *netWork { return &netWork{r: r, addr: addr} })
	if n == nil {
		n = &netWork{r: r, addr: addr, inumErr: kernel.ErrTooLong}
	}
	return n
}

// netNode enters the namespace whose link is at node, unless that is the head.
func (r *sockReader) netNode(node mem.Virt) {
	if node != r.nets.head {
		r.netAt(node - mem.Virt(r.net.List.Offset))
	}
}

func (n *netWork) run(w *kernel.Walk) {
	r, l := n.r, n.r.net
	n.inumErr = w.Try(func() { n.inum = w.Uint(n.addr, l.Inum) })
	n.nextErr = w.Try(func() {
		w.Guard(n.addr+mem.Virt(l.List.Offset), link)
		n.next = w.Pointer(w.At(n.addr, l.List))
	})
	if n.nextErr == nil {
		r.netNode(n.next)
	}
	n.tables, n.devs = n.tables[:0], n.devs[:0]
	r.into = &n.tables
	n.tabErr = r.tables(w, n)
	r.into = &r.global
}

// socketTables enters the tables of sockets that are the namespace's own.
func (r *sockReader) socketTables(w *kernel.Walk, n *netWork) error {
	l := r.net
	tcp := w.Try(func() {
		row := n.addr
		if l.DeathRow.Size == 8 {
			row = w.Ptr(n.addr, l.DeathRow)
		}
		if h := table(w, row, l.HashInfo); w.OK() {
			r.tcpTables(h)
		}
	})
	udp := w.Try(func() {
		if l.UDPTable.Known {
			if t := table(w, n.addr, l.UDPTable); w.OK() {
				r.udpTable(kindUDP, t)
			}
		}
	})
	unix := w.Try(func() {
		_, builtin := w.View().Symbols().Lookup("unix_net_init")
		if l.UnixBuckets.Known && (builtin || w.Ptr(n.addr, l.UnixBuckets) != 0) { // or else the module is not loaded
			if b := table(w, n.addr, l.UnixBuckets); w.OK() {
				r.unixTable(b)
			}
		}
	})
	if l.PacketList.Known {
		r.packetList(w.At(n.addr, l.PacketList))
	}
	return cmp.Or(tcp, udp, unix)
}

// table follows the link to one of a namespace's tables.
func table(w *kernel.Walk, obj mem.Virt, f btf.Field) mem.Virt {
	t := w.Follow(obj, f)
	if w.OK() && t == 0 {
		w.Failf("%s is NULL", f.Name)
	}
	return t
}

// checkNets compares the namespaces that were met with the list of all. used are those
// that processes have.
func (r *sockReader) checkNets(used map[mem.Virt]bool) {
	listed := make(map[mem.Virt]bool)
	if r.nets.err != nil {
		r.v.Find("net_namespace_list", "%v", r.nets.err)
		return
	}
	for node := r.nets.first; node != r.nets.head; {
		addr := node - mem.Virt(r.net.List.Offset)
		if listed[addr] {
			r.v.Find("net_namespace_list", "network namespace %v: %v", addr, kernel.ErrLoop)
			return
		}
		listed[addr] = true
		n := r.netAt(addr)
		if n.nextErr != nil {
			r.v.Find(fmt.Sprintf("network namespace %v", addr), "%v", n.nextErr)
			return
		}
		node = n.next
	}
	for _, n := range r.netsInUse() {
		switch {
		case !listed[n.addr] && !used[n.addr]:
			// It is being set up or taken apart: the kernel's own sockets in it are there
			// before it is in the list, and after.
		case !listed[n.addr] && n.inumErr != nil:
			r.v.Find(fmt.Sprintf("network namespace %v", n.addr), "not in net_namespace_list, and cannot be read: %v", n.inumErr)
		case !listed[n.addr]:
			r.v.Find(fmt.Sprintf("network namespace %d", n.inum), "in use but not in net_namespace_list")
		case n.tabErr != nil:
			r.v.Find(fmt.Sprintf("network namespace %d", n.inum), "%v", n.tabErr)
		}
	}
}
