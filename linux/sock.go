package linux

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Socket is a socket as the files under /proc/net of its network namespace show
// it. What its protocol has no such thing for, or /proc does not tell, is nil.
type Socket struct {
	Protocol string `json:"protocol"` // "tcp", "tcp6", "udp", …: the file under /proc/net
	// State is the TCP state's name, also of connected and other udp, raw and icmp
	// sockets ("ESTABLISHED", "CLOSE"); of unix sockets "LISTEN", "UNCONNECTED",
	// "CONNECTING", "CONNECTED" or "DISCONNECTING"; nil for packet and netlink.
	State         *string      `json:"state"`
	LocalAddress  *string      `json:"local_address"`
	LocalPort     *uint32      `json:"local_port"` // of raw the IP protocol, of icmp the identifier, of netlink the port id
	RemoteAddress *string      `json:"remote_address"`
	RemotePort    *uint32      `json:"remote_port"`
	Path          *string      `json:"path"`     // of unix sockets; an abstract name begins with @, and has @ for each NUL
	Inode         uint64       `json:"inode"`    // 0 when no process holds it
	UID           uint32       `json:"uid"`      // 0 for those the kernel keeps without an owner
	NetNS         uint64       `json:"netns"`    // inode number of the network namespace
	RxQueue       *uint32      `json:"rx_queue"` // bytes, of a listening TCP socket connections; nil for unix
	TxQueue       *uint32      `json:"tx_queue"` // bytes; nil for unix and packet
	Processes     []SockHolder `json:"processes"`
	Type          *string      `json:"type"`            // "stream", "dgram", "raw", "seqpacket"; nil when none is kept
	Number        *uint32      `json:"protocol_number"` // of packet the EtherType, of netlink its protocol, of raw the IP protocol
	Interface     *int         `json:"interface"`       // index of the device it is bound to
	Moved         bool         `json:"moved"`           // memory kept changing while this was read
	Errors        []string     `json:"errors"`          // parts that could not be read

	Addr mem.Virt `json:"-"` // of the sock
	Code uint8    `json:"-"` // the state as /proc prints it
	Refs uint32   `json:"-"` // reference count as /proc prints it
}

// SockHolder is a descriptor through which a process holds a socket.
type SockHolder struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	FD   int    `json:"fd"`
}

// SocketOptions chooses what Sockets lists. The zero value lists all.
type SocketOptions struct {
	PID int // only sockets this process holds; 0 means all
}

// sockKind is a family of sockets that live in one kind of table.
type sockKind uint8

const (
	kindTCP sockKind = iota
	kindUDP
	kindUDPLite
	kindRaw
	kindRaw6
	kindPing
	kindUnix
	kindPacket
	kindNetlink
)

// sockLayout is include/net/sock.h and include/linux/net.h.
type sockLayout struct {
	Family    btf.Field `btf:"sock.__sk_common.skc_family"`
	State     btf.Field `btf:"sock.__sk_common.skc_state"`
	Daddr     btf.Field `btf:"sock.__sk_common.skc_daddr"`
	Saddr     btf.Field `btf:"sock.__sk_common.skc_rcv_saddr"`
	Dport     btf.Field `btf:"sock.__sk_common.skc_dport"`
	Num       btf.Field `btf:"sock.__sk_common.skc_num"`
	Daddr6    btf.Field `btf:"sock.__sk_common.skc_v6_daddr ?"` // not with CONFIG_IPV6=n
	Saddr6    btf.Field `btf:"sock.__sk_common.skc_v6_rcv_saddr ?"`
	BoundIf   btf.Field `btf:"sock.__sk_common.skc_bound_dev_if"`
	Net       btf.Field `btf:"sock.__sk_common.skc_net.net"`
	Node      btf.Field `btf:"sock.__sk_common.skc_node"` // and skc_nulls_node
	NodePrev  btf.Field `btf:"sock.__sk_common.skc_node.pprev"`
	Listener  btf.Field `btf:"sock.__sk_common.skc_listener"`
	Refs      btf.Field `btf:"sock.__sk_common.skc_refcnt"`
	Socket    btf.Field `btf:"sock.sk_socket"`
	Type      btf.Field `btf:"sock.sk_type"`
	Protocol  btf.Field `btf:"sock.sk_protocol"`
	UID       btf.Field `btf:"sock.sk_uid"`
	Ino       btf.Field `btf:"sock.sk_ino ?"` // since 6.18
	WriteMem  btf.Field `btf:"sock.sk_wmem_alloc"`
	ReadMem   btf.Field `btf:"sock.sk_backlog.rmem_alloc"`
	Backlog   btf.Field `btf:"sock.sk_ack_backlog"`
	SockSock  btf.Field `btf:"socket_alloc.socket"`
	SockInode btf.Field `btf:"socket_alloc.vfs_inode"`
	InodeNr   btf.Field `btf:"inode.i_ino"`
	InodeUID  btf.Field `btf:"inode.i_uid"`
	SocketSK  btf.Field `btf:"socket.sk"`
	FileOps   btf.Field `btf:"file.f_op"`
	FileData  btf.Field `btf:"file.private_data"`
}

// Sockets lists the sockets of all network namespaces: those the kernel's tables
// hold, which are what it shows under /proc/net. Who holds them comes from the
// descriptor tables of all processes. A socket that a process holds and that says
// it is in a table, which does not lead to it, is listed with an error that says
// so: it came or went while it was read, or, with a finding, the table is damaged. A
// table that cannot be followed to its end is a finding.
func Sockets(v *kernel.View, opts SocketOptions) ([]Socket, error) {
	return confirmed(v, func() ([]Socket, error) { return listSockets(v, opts) })
}

// listSockets is Sockets for one look.
func listSockets(v *kernel.View, opts SocketOptions) ([]Socket, error) {
	r, err := newSockReader(v)
	if err != nil {
		return nil, err
	}
	if err := r.begin(); err != nil {
		return nil, err
	}
	if err := r.q.run(); err != nil {
		return nil, fmt.Errorf("read sockets: %w", err)
	}
	if r.ids.err != nil {
		return nil, fmt.Errorf("read the PID IDR: %w", r.ids.err)
	}
	extra, err := r.unlisted()
	if err != nil {
		return nil, fmt.Errorf("read sockets: %w", err)
	}
	out := r.collect(extra)
	if opts.PID != 0 {
		out = slices.DeleteFunc(out, func(s Socket) bool {
			return !slices.ContainsFunc(s.Processes, func(h SockHolder) bool { return h.PID == opts.PID })
		})
	}
	slices.SortFunc(out, compareSockets)
	return out, nil
}

// sockReader reads sockets, network namespaces and who holds what.
type sockReader struct {
	v       *kernel.View
	q       *workQueue
	l       *sockLayout
	net     *netLayout
	inet    *inetLayout
	unix    *unixLayout
	packet  *packetLayout
	netlink *netlinkLayout
	task    *taskLayout
	own     *ownerLayout
	fds     *fdLayout
	xa      *xarrayLayout

	fileOps  mem.Virt // socket_file_ops
	inodeUID bool     // the uid shown is the inode's: before 6.17
	ids      *pidsWork
	nets     *netListWork
	links    *netlinkWork
	global   []*sockTable                           // of all network namespaces
	into     *[]*sockTable                          // where tables being entered are noted
	tables   func(w *kernel.Walk, n *netWork) error // enters what a namespace holds
}

func newSockReader(v *kernel.View) (*sockReader, error) {
	r := &sockReader{v: v, q: newWorkQueue(v)}
	r.tables, r.into = r.socketTables, &r.global
	k := v.Kernel
	for _, bind := range []func() error{
		func() (err error) { r.l, err = kernel.Layout[sockLayout](k); return },
		func() (err error) { r.net, err = kernel.Layout[netLayout](k); return },
		func() (err error) { r.inet, err = kernel.Layout[inetLayout](k); return },
		func() (err error) { r.unix, err = kernel.Layout[unixLayout](k); return },
		func() (err error) { r.packet, err = kernel.Layout[packetLayout](k); return },
		func() (err error) { r.netlink, err = kernel.Layout[netlinkLayout](k); return },
		func() (err error) { r.task, err = kernel.Layout[taskLayout](k); return },
		func() (err error) { r.own, err = kernel.Layout[ownerLayout](k); return },
		func() (err error) { r.fds, err = kernel.Layout[fdLayout](k); return },
		func() (err error) { r.xa, err = kernel.Layout[xarrayLayout](k); return },
		func() (err error) { r.fileOps, err = v.Symbol("socket_file_ops"); return },
	} {
		if err := bind(); err != nil {
			return nil, err
		}
	}
	_, r.inodeUID = v.Symbols().Lookup("sock_i_uid")
	return r, nil
}

// begin enters the works that all others come from.
func (r *sockReader) begin() error {
	if err := r.beginOwners(); err != nil {
		return err
	}
	if err := r.beginNets(); err != nil {
		return err
	}
	if err := r.beginNetlink(); err != nil {
		return err
	}
	return r.beginInet()
}

// sockWork is one socket of a table.
type sockWork struct {
	r    *sockReader
	kind sockKind
	addr mem.Virt
	row  Socket
	net  mem.Virt
	err  error // why it is no socket at all
}

// sock returns the work that reads the socket at addr as one of kind, nil when
// there are too many.
func (r *sockReader) sock(kind sockKind, addr mem.Virt) *sockWork {
	if r.q.socks == maxSockets {
		r.q.full = true
		return nil
	}
	return enqueue(r.q, workSock+workKind(kind), addr, func() *sockWork {
		r.q.socks++
		return &sockWork{r: r, kind: kind, addr: addr}
	})
}

func (s *sockWork) run(w *kernel.Walk) {
	s.row = Socket{Addr: s.addr, Errors: []string{}, Processes: []SockHolder{}}
	l := s.r.l
	w.Guard(s.addr, l.State)
	s.row.Code = uint8(w.Uint(s.addr, l.State))
	s.net = w.Follow(s.addr, l.Net)
	s.row.Refs = uint32(w.Uint(s.addr, l.Refs))
	if i := int(w.Int(s.addr, l.BoundIf)); i != 0 {
		s.row.Interface = &i
	}
	if w.OK() {
		s.r.netAt(s.net)
	}
	switch s.kind {
	case kindUnix:
		s.unix(w)
	case kindPacket:
		s.packet(w)
	case kindNetlink:
		s.netlink(w)
	default:
		s.inet(w)
	}
	s.err = w.Err()
}

// part reads what the rest of the row can do without.
func (s *sockWork) part(w *kernel.Walk, name string, f func()) {
	if err := w.Try(f); err != nil {
		s.row.Errors = append(s.row.Errors, message(name, err))
	}
}

// owner reads inode and uid as sock_i_ino and sock_i_uid do (net/core/sock.c).
func (s *sockWork) owner(w *kernel.Walk) {
	l := s.r.l
	s.row.UID = uint32(w.Uint(s.addr, l.UID))
	socket := w.Follow(s.addr, l.Socket)
	if l.Ino.Known {
		s.row.Inode = w.Uint(s.addr, l.Ino)
	}
	if l.Ino.Known && !s.r.inodeUID {
		return
	}
	if s.r.inodeUID {
		s.row.UID = 0
	}
	if socket == 0 {
		return
	}
	s.part(w, "inode", func() {
		inode := w.At(socket, l.SockInode) - mem.Virt(l.SockSock.Offset)
		s.row.Inode = w.Uint(inode, l.InodeNr)
		if s.r.inodeUID {
			s.row.UID = uint32(w.Uint(inode, l.InodeUID))
		}
	})
}

// typ names sk_type (include/linux/net.h).
func (s *sockWork) typ(w *kernel.Walk) {
	names := [...]string{1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp", 10: "packet"}
	n := w.Uint(s.addr, s.r.l.Type)
	name := fmt.Sprint(n)
	if n < uint64(len(names)) && names[n] != "" {
		name = names[n]
	}
	s.row.Type = &name
}

// Of sk_wmem_alloc one is the socket's own (sk_wmem_alloc_get).
func (s *sockWork) writeQueue(w *kernel.Walk) *uint32 {
	n := uint32(w.Uint(s.addr, s.r.l.WriteMem)) - 1
	return &n
}

func (s *sockWork) readQueue(w *kernel.Walk) *uint32 {
	n := uint32(w.Uint(s.addr, s.r.l.ReadMem))
	return &n
}

// collect gathers what the chains hold now, and extra.
func (r *sockReader) collect(extra []*sockWork) []Socket {
	holders := r.holders()
	out := []Socket{}
	used := make(map[mem.Virt]bool) // network namespaces
	for _, p := range r.ids.pids {
		if p.net != nil {
			used[p.net.addr] = true
		}
	}
	taken := make(map[*sockWork]bool)
	if r.links.err != nil {
		r.v.Find("nl_table", "%v", r.links.err)
	}
	for _, t := range r.tablesInUse() {
		if t.err != nil {
			r.v.Find(fmt.Sprintf("%v table %v", t.kind, t.addr), "%v", t.err)
		}
		for _, c := range t.chains {
			switch name := fmt.Sprintf("%v table %v, chain at %v", t.kind, t.addr, c.head); {
			case c.err != nil:
				r.v.Find(name, "%v", c.err)
			case r.q.hasMoved(workChain, c.head):
				r.v.Find(name, "kept changing while it was read: sockets may be missing")
			}
			for _, s := range c.socks {
				if taken[s] {
					continue
				}
				taken[s] = true
				if row, ok := r.row(s); ok {
					row.Processes = append(row.Processes, holders[s.addr]...)
					used[s.net] = used[s.net] || len(row.Processes) > 0
					out = append(out, row)
				}
			}
		}
	}
	for _, s := range extra {
		if row, ok := r.row(s); ok && !taken[s] {
			const what = "held by a process, but not in the kernel's table"
			row.Errors = append(row.Errors, what)
			r.v.Find(fmt.Sprintf("%v socket %v", s.kind, s.addr), what)
			row.Processes = append(row.Processes, holders[s.addr]...)
			out = append(out, row)
		}
	}
	r.checkNets(used)
	return out
}

// row returns a socket's row, unless it is none that /proc would show.
func (r *sockReader) row(s *sockWork) (Socket, bool) {
	if s.err != nil {
		r.v.Find(fmt.Sprintf("%v socket %v", s.kind, s.addr), "%v", s.err)
		return Socket{}, false
	}
	row := s.row
	n := r.netAt(s.net)
	if n.inumErr != nil {
		row.Errors = append(row.Errors, message("netns", n.inumErr))
	}
	row.NetNS = n.inum
	row.Moved = r.q.hasMoved(workSock+workKind(s.kind), s.addr)
	return row, true
}

func (k sockKind) String() string {
	return [...]string{"tcp", "udp", "udplite", "raw", "raw6", "icmp", "unix", "packet", "netlink"}[k]
}

func compareSockets(a, b Socket) int {
	return cmp.Or(
		cmp.Compare(rank[a.Protocol], rank[b.Protocol]),
		cmp.Compare(a.NetNS, b.NetNS),
		compareOptional(a.LocalPort, b.LocalPort),
		compareOptional(a.LocalAddress, b.LocalAddress),
		compareOptional(a.RemotePort, b.RemotePort),
		compareOptional(a.RemoteAddress, b.RemoteAddress),
		cmp.Compare(a.Inode, b.Inode),
		cmp.Compare(a.Addr, b.Addr))
}

// rank orders protocols as they are usually told.
var rank = map[string]int{"tcp": 0, "tcp6": 1, "udp": 2, "udp6": 3, "udplite": 4, "udplite6": 5, "raw": 6, "raw6": 7,
	"icmp": 8, "icmp6": 9, "unix": 10, "packet": 11, "netlink": 12}

func compareOptional[T cmp.Ordered](a, b *T) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return cmp.Compare(*a, *b)
}
