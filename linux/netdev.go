package linux

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Netdev is a network device of one network namespace.
type Netdev struct {
	Name      string       `json:"name"`
	Index     int          `json:"index"`
	NetNS     uint64       `json:"netns"` // inode number of the network namespace
	Kind      *string      `json:"kind"`  // "veth", "bridge", …; nil for hardware and lo
	MAC       *string      `json:"mac"`   // nil when its link layer has no addresses
	MTU       uint32       `json:"mtu"`
	Flags     []string     `json:"flags"` // as "ip link" names them: UP, LOOPBACK, LOWER_UP, …
	State     string       `json:"state"` // as /sys/class/net/NAME/operstate
	Addresses []NetAddress `json:"addresses"`
	NetStats
	Moved  bool     `json:"moved"`
	Errors []string `json:"errors"` // parts that could not be read

	RawFlags uint32   `json:"-"` // net_device.flags
	Addr     mem.Virt `json:"-"` // of the net_device
}

// NetAddress is an address of a device.
type NetAddress struct {
	Address string `json:"address"`
	Prefix  int    `json:"prefix_length"` // bits
	Scope   string `json:"scope"`         // global, site, link, host, nowhere
	Peer    string `json:"peer,omitempty"`
	Label   string `json:"label,omitempty"` // of IPv4 addresses
	Flags   uint32 `json:"flags"`           // IFA_F_…
}

// netdevLayout is include/linux/netdevice.h, inetdevice.h and include/net/if_inet6.h.
type netdevLayout struct {
	Heads   btf.Field `btf:"net.dev_index_head"`
	Node    btf.Field `btf:"net_device.index_hlist"`
	Name    btf.Field `btf:"net_device.name"`
	Index   btf.Field `btf:"net_device.ifindex"`
	MTU     btf.Field `btf:"net_device.mtu"`
	Flags   btf.Field `btf:"net_device.flags"`
	GFlags  btf.Field `btf:"net_device.gflags"`
	State   btf.Field `btf:"net_device.state"`
	Oper    btf.Field `btf:"net_device.operstate"`
	Addr    btf.Field `btf:"net_device.dev_addr"`
	AddrLen btf.Field `btf:"net_device.addr_len"`
	Rtnl    btf.Field `btf:"net_device.rtnl_link_ops"`
	Kind    btf.Field `btf:"rtnl_link_ops.kind"`
	Ops     btf.Field `btf:"net_device.netdev_ops"`
	Stats64 btf.Field `btf:"net_device_ops.ndo_get_stats64"`
	Stats32 btf.Field `btf:"net_device_ops.ndo_get_stats"`

	In4      btf.Field `btf:"net_device.ip_ptr"`
	List4    btf.Field `btf:"in_device.ifa_list"`
	Next4    btf.Field `btf:"in_ifaddr.ifa_next"`
	Local4   btf.Field `btf:"in_ifaddr.ifa_local"`
	Peer4    btf.Field `btf:"in_ifaddr.ifa_address"`
	Prefix4  btf.Field `btf:"in_ifaddr.ifa_prefixlen"`
	Scope4   btf.Field `btf:"in_ifaddr.ifa_scope"`
	Flags4   btf.Field `btf:"in_ifaddr.ifa_flags"`
	Label4   btf.Field `btf:"in_ifaddr.ifa_label"`
	In6      btf.Field `btf:"net_device.ip6_ptr ?"`
	List6    btf.Field `btf:"inet6_dev.addr_list ?"`
	Link6    btf.Field `btf:"inet6_ifaddr.if_list ?"`
	Address6 btf.Field `btf:"inet6_ifaddr.addr ?"`
	Peer6    btf.Field `btf:"inet6_ifaddr.peer_addr ?"`
	Prefix6  btf.Field `btf:"inet6_ifaddr.prefix_len ?"`
	Scope6   btf.Field `btf:"inet6_ifaddr.scope ?"`
	Flags6   btf.Field `btf:"inet6_ifaddr.flags ?"`
}

// netdevBuckets is NETDEV_HASHENTRIES (include/net/net_namespace.h).
const netdevBuckets = 256

// maxAddresses bounds the addresses of one device.
const maxAddresses = 1 << 16

// Netdevs lists the network devices of all network namespaces, by namespace and
// index, with their addresses and counters. A counter is nil where the driver
// keeps it in a way that is not known; why is among the row's errors.
func Netdevs(v *kernel.View) ([]Netdev, error) {
	return confirmed(v, func() ([]Netdev, error) { return listNetdevs(v) })
}

// listNetdevs is Netdevs for one look.
func listNetdevs(v *kernel.View) ([]Netdev, error) {
	r, err := newSockReader(v)
	if err != nil {
		return nil, err
	}
	l, err := kernel.Layout[netdevLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	r.tables = func(w *kernel.Walk, n *netWork) error { return w.Try(func() { r.devices(w, l, n) }) }
	if err := r.beginNets(); err != nil {
		return nil, err
	}
	// Every namespace has netlink sockets of the kernel's own: the short way to all.
	if err := r.beginNetlink(); err != nil {
		return nil, err
	}
	if err := r.q.run(); err != nil {
		return nil, fmt.Errorf("read network devices: %w", err)
	}
	r.checkNets(nil)
	var devs []*devWork
	for _, d := range r.devicesInUse() {
		if d.err != nil {
			v.Find(fmt.Sprintf("network device %v", d.addr), "%v", d.err)
			continue
		}
		d.row.NetNS, d.row.Moved = d.net.inum, r.q.hasMoved(workDev, d.addr)
		if d.net.inumErr != nil {
			d.row.Errors = append(d.row.Errors, message("netns", d.net.inumErr))
		}
		devs = append(devs, d)
	}
	if err := readNetStats(v, devs); err != nil {
		return nil, err
	}
	out := make([]Netdev, 0, len(devs))
	for _, d := range devs {
		out = append(out, d.row)
	}
	slices.SortFunc(out, func(a, b Netdev) int {
		return cmp.Or(cmp.Compare(a.NetNS, b.NetNS), cmp.Compare(a.Index, b.Index))
	})
	return out, nil
}

// devices enters a namespace's devices, by its hash of their indexes.
func (r *sockReader) devices(w *kernel.Walk, l *netdevLayout, n *netWork) {
	var missed error
	for _, head := range buckets(w, w.Follow(n.addr, l.Heads), netdevBuckets, 8, 0) {
		err := w.Try(func() {
			w.Guard(head, link)
			hlist(w, head, func(node mem.Virt) bool {
				w.Guard(node, link)
				dev := node - mem.Virt(l.Node.Offset)
				d := enqueue(r.q, workDev, dev, func() *devWork { return &devWork{l: l, addr: dev} })
				if d != nil {
					d.net = n
					n.devs = append(n.devs, d)
				}
				return true
			})
		})
		if missed == nil {
			missed = err
		}
	}
	w.Fail(missed)
}

// devWork is one network device.
type devWork struct {
	l    *netdevLayout
	net  *netWork
	addr mem.Virt
	row  Netdev
	err  error

	ops, stats64, stats32 mem.Virt
}

func (d *devWork) run(w *kernel.Walk) {
	l, a := d.l, d.addr
	d.row = Netdev{Addr: a, Errors: []string{}, Addresses: []NetAddress{}}
	row := &d.row
	w.Guard(a, l.Index)
	row.Name, row.Index = w.Text(a, l.Name), int(w.Int(a, l.Index))
	row.MTU, row.RawFlags = uint32(w.Uint(a, l.MTU)), uint32(w.Uint(a, l.Flags))
	state, oper := w.Uint(a, l.State), w.Uint(a, l.Oper)
	row.Flags = deviceFlags(row.RawFlags, uint32(w.Uint(a, l.GFlags)), state, oper)
	row.State = operState(state, oper)
	d.ops = w.Ptr(a, l.Ops)
	d.part(w, "operations", func() { d.stats64, d.stats32 = w.Ptr(d.ops, l.Stats64), w.Ptr(d.ops, l.Stats32) })
	d.part(w, "mac", func() { row.MAC = d.mac(w) })
	d.part(w, "kind", func() {
		if rtnl := w.Ptr(a, l.Rtnl); rtnl != 0 {
			kind := w.String(w.Ptr(rtnl, l.Kind), 64)
			row.Kind = &kind
		}
	})
	var four, six []NetAddress
	d.part(w, "IPv4 addresses", func() { four = d.addresses4(w) })
	d.part(w, "IPv6 addresses", func() { six = d.addresses6(w) })
	row.Addresses = append(append(row.Addresses, four...), six...)
	d.err = w.Err()
}

func (d *devWork) part(w *kernel.Walk, name string, f func()) {
	if err := w.Try(f); err != nil {
		d.row.Errors = append(d.row.Errors, message(name, err))
	}
}

func (d *devWork) mac(w *kernel.Walk) *string {
	const maxAddrLen = 32 // MAX_ADDR_LEN
	n := w.Uint(d.addr, d.l.AddrLen)
	if n > maxAddrLen {
		w.Failf("address of %d bytes: %w", n, kernel.ErrTooLong)
	}
	if b := w.Bytes(w.Ptr(d.addr, d.l.Addr), n); len(b) > 0 {
		s := net.HardwareAddr(b).String()
		return &s
	}
	return nil
}

// addresses4 reads the IPv4 addresses, in the kernel's order.
func (d *devWork) addresses4(w *kernel.Walk) (out []NetAddress) {
	l := d.l
	in := w.Follow(d.addr, l.In4)
	if in == 0 {
		return nil
	}
	text := func(a mem.Virt, f btf.Field) string {
		var b [4]byte
		w.Read(w.At(a, f), b[:])
		return netip.AddrFrom4(b).String()
	}
	seen := make(map[mem.Virt]bool)
	for a := w.Follow(in, l.List4); w.OK() && a != 0; a = w.Follow(a, l.Next4) {
		if seen[a] {
			w.Failf("address %v: %w", a, kernel.ErrLoop)
		}
		if seen[a] = true; len(seen) > maxAddresses {
			w.Fail(kernel.ErrTooLong)
		}
		x := NetAddress{Address: text(a, l.Local4), Prefix: int(w.Uint(a, l.Prefix4)), Label: w.Text(a, l.Label4),
			Scope: scope4(w.Uint(a, l.Scope4)), Flags: uint32(w.Uint(a, l.Flags4))}
		if peer := text(a, l.Peer4); peer != x.Address {
			x.Peer = peer
		}
		if w.OK() {
			out = append(out, x)
		}
	}
	return out
}

// addresses6 reads the IPv6 addresses, in the kernel's order.
func (d *devWork) addresses6(w *kernel.Walk) (out []NetAddress) {
	l := d.l
	if !l.In6.Known || !l.Link6.Known {
		return nil
	}
	in := w.Follow(d.addr, l.In6)
	if in == 0 {
		return nil
	}
	head := w.At(in, l.List6)
	w.Guard(head, link)
	list(w, head, func(node mem.Virt) bool {
		w.Guard(node, link)
		a := node - mem.Virt(l.Link6.Offset)
		var b, peer [16]byte
		w.Read(w.At(a, l.Address6), b[:])
		w.Read(w.At(a, l.Peer6), peer[:])
		x := NetAddress{Address: netip.AddrFrom16(b).String(), Prefix: int(w.Uint(a, l.Prefix6)),
			Scope: scope6(w.Uint(a, l.Scope6)), Flags: uint32(w.Uint(a, l.Flags6))}
		if peer != [16]byte{} {
			x.Peer = netip.AddrFrom16(peer).String()
		}
		if w.OK() {
			out = append(out, x)
		}
		return len(out) <= maxAddresses
	})
	if len(out) > maxAddresses {
		w.Fail(kernel.ErrTooLong)
	}
	return out
}

// scope4 names an rt_scope_t (include/uapi/linux/rtnetlink.h).
func scope4(n uint64) string {
	switch n {
	case 0:
		return "global"
	case 200:
		return "site"
	case 253:
		return "link"
	case 254:
		return "host"
	case 255:
		return "nowhere"
	}
	return fmt.Sprint(n)
}

// scope6 names the scope of an IPv6 address (include/net/ipv6.h), in the number
// /proc/net/if_inet6 prints.
func scope6(n uint64) string {
	switch n & 0xf0 {
	case 0:
		return "global"
	case 0x10:
		return "host"
	case 0x20:
		return "link"
	case 0x40:
		return "site"
	}
	return fmt.Sprint(n)
}

// Bits of net_device.state, enum netdev_state_t.
const (
	linkStart     = 1 << 0
	linkNoCarrier = 1 << 2
	linkDormant   = 1 << 4
)

// Bits of device flags (include/uapi/linux/if.h) that are made up when asked for.
const (
	flagRunning  = 1 << 6
	flagPromisc  = 1 << 8
	flagAllMulti = 1 << 9
	flagLowerUp  = 1 << 16
	flagDormant  = 1 << 17
)

var flagNames = [...]string{"UP", "BROADCAST", "DEBUG", "LOOPBACK", "POINTOPOINT", "NOTRAILERS", "RUNNING", "NOARP",
	"PROMISC", "ALLMULTI", "MASTER", "SLAVE", "MULTICAST", "PORTSEL", "AUTOMEDIA", "DYNAMIC", "LOWER_UP", "DORMANT", "ECHO"}

// deviceFlags is dev_get_flags (net/core/dev.c).
func deviceFlags(flags, gflags uint32, state, oper uint64) []string {
	const unknown, up = 0, 6 // IF_OPER_UNKNOWN, IF_OPER_UP
	f := flags &^ (flagPromisc | flagAllMulti | flagRunning | flagLowerUp | flagDormant)
	f |= gflags & (flagPromisc | flagAllMulti)
	if state&linkStart != 0 {
		if oper == unknown || oper == up {
			f |= flagRunning
		}
		if state&linkNoCarrier == 0 {
			f |= flagLowerUp
		}
		if state&linkDormant != 0 {
			f |= flagDormant
		}
	}
	names := []string{}
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// operState names net_device.operstate (net/core/net-sysfs.c, operstate_show).
func operState(state, oper uint64) string {
	names := [...]string{"unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up"}
	switch {
	case state&linkStart == 0:
		return "down"
	case oper < uint64(len(names)):
		return names[oper]
	}
	return fmt.Sprint(oper)
}
