package linux

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// inetLayout is include/net/inet_hashtables.h, inet_sock.h, inet_timewait_sock.h,
// request_sock.h, include/linux/tcp.h, udp.h, and the tables of udp, raw and ping.
type inetLayout struct {
	Established btf.Field `btf:"inet_hashinfo.ehash"`
	EstMask     btf.Field `btf:"inet_hashinfo.ehash_mask"`
	EstBucket   btf.Field `btf:"inet_ehash_bucket"`
	EstHead     btf.Field `btf:"inet_ehash_bucket.chain"`
	Listening   btf.Field `btf:"inet_hashinfo.listening_hash ?"` // until 5.18, when lhash2 got its links
	Listening2  btf.Field `btf:"inet_hashinfo.lhash2"`
	ListenMask  btf.Field `btf:"inet_hashinfo.lhash2_mask"`
	ListenBkt   btf.Field `btf:"inet_listen_hashbucket"`
	ListenHead  btf.Field `btf:"inet_listen_hashbucket.nulls_head inet_listen_hashbucket.head"`

	UDPHash    btf.Field `btf:"udp_table.hash"`
	UDPMask    btf.Field `btf:"udp_table.mask"`
	UDPSlot    btf.Field `btf:"udp_hslot"`
	UDPHead    btf.Field `btf:"udp_hslot.head"`
	RawHash    btf.Field `btf:"raw_hashinfo.ht"`
	PingHash   btf.Field `btf:"ping_table.hash ?"`
	UDPDeficit btf.Field `btf:"udp_sock.forward_deficit"`

	Sport     btf.Field `btf:"inet_sock.inet_sport"`
	TWSport   btf.Field `btf:"inet_timewait_sock.tw_sport"`
	TWState   btf.Field `btf:"inet_timewait_sock.tw_substate"`
	ReqOps    btf.Field `btf:"request_sock.rsk_ops"`
	ReqFamily btf.Field `btf:"request_sock_ops.family"`
	WriteSeq  btf.Field `btf:"tcp_sock.write_seq"`
	SndUna    btf.Field `btf:"tcp_sock.snd_una"`
	RcvNxt    btf.Field `btf:"tcp_sock.rcv_nxt"`
	CopiedSeq btf.Field `btf:"tcp_sock.copied_seq"`
}

// Address families (include/linux/socket.h).
const (
	familyInet  = 2
	familyInet6 = 10
)

// TCP states (include/net/tcp_states.h) that sockets are read differently in.
const (
	tcpSynRecv  = 3
	tcpTimeWait = 6
	tcpListen   = 10
	tcpRequest  = 12 // TCP_NEW_SYN_RECV, which /proc shows as TCP_SYN_RECV
)

var tcpStates = [...]string{1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2",
	6: "TIME_WAIT", 7: "CLOSE", 8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING"}

// beginInet enters the tables that are not a namespace's own.
func (r *sockReader) beginInet() error {
	if !r.net.UDPTable.Known {
		t, err := r.v.Symbol("udp_table")
		if err != nil {
			return err
		}
		r.udpTable(kindUDP, t)
	}
	if t, err := r.v.Symbol("udplite_table"); err == nil { // gone since 7.1
		r.udpTable(kindUDPLite, t)
	}
	for kind, name := range map[sockKind]string{kindRaw: "raw_v4_hashinfo", kindRaw6: "raw_v6_hashinfo"} {
		t, err := r.v.Symbol(name)
		switch {
		case err == nil:
			r.arrayTable(kind, t, r.inet.RawHash)
		case kind == kindRaw6 && !r.l.Saddr6.Known: // no IPv6 at all
		case kind == kindRaw6: // IPv6 is a module, whose symbols are its own
			r.v.Find("raw6 sockets", "not listed: %v", err)
		default:
			return err
		}
	}
	if t, err := r.v.Symbol("ping_table"); err == nil && r.inet.PingHash.Known {
		r.arrayTable(kindPing, t, r.inet.PingHash)
	}
	if !r.net.UnixBuckets.Known {
		return r.beginUnix()
	}
	return nil
}

// table enters a table of sockets linked through skc_node.
func (r *sockReader) table(kind sockKind, addr mem.Virt, heads func(w *kernel.Walk) []mem.Virt) {
	t := enqueue(r.q, workTable, addr, func() *sockTable {
		return &sockTable{r: r, kind: kind, addr: addr, heads: heads, node: int64(r.l.Node.Offset)}
	})
	if t != nil {
		*r.into = append(*r.into, t)
	}
}

// arrayTable enters a table whose heads are the array f of the object at t.
func (r *sockReader) arrayTable(kind sockKind, t mem.Virt, f btf.Field) {
	r.table(kind, t, func(w *kernel.Walk) []mem.Virt {
		return buckets(w, w.At(t, f), uint64(f.Len()), uint64(f.Elem), 0)
	})
}

// tcpTables enters the two tables of the inet_hashinfo at h.
func (r *sockReader) tcpTables(h mem.Virt) {
	l := r.inet
	r.table(kindTCP, h, func(w *kernel.Walk) []mem.Virt {
		return buckets(w, w.Follow(h, l.Established), w.Uint(h, l.EstMask)+1, uint64(l.EstBucket.Size), uint64(l.EstHead.Offset))
	})
	head := uint64(l.ListenHead.Offset)
	if f := l.Listening; f.Known {
		r.table(kindTCP, h+mem.Virt(f.Offset), func(w *kernel.Walk) []mem.Virt {
			return buckets(w, w.At(h, f), uint64(f.Len()), uint64(f.Elem), head)
		})
		return
	}
	r.table(kindTCP, h+mem.Virt(l.Listening2.Offset), func(w *kernel.Walk) []mem.Virt {
		return buckets(w, w.Follow(h, l.Listening2), w.Uint(h, l.ListenMask)+1, uint64(l.ListenBkt.Size), head)
	})
}

func (r *sockReader) udpTable(kind sockKind, t mem.Virt) {
	l := r.inet
	r.table(kind, t, func(w *kernel.Walk) []mem.Virt {
		return buckets(w, w.Follow(t, l.UDPHash), w.Uint(t, l.UDPMask)+1, uint64(l.UDPSlot.Size), uint64(l.UDPHead.Offset))
	})
}

// inet reads a TCP, UDP, raw or ping socket as the seq_show functions of
// net/ipv4/{tcp_ipv4,udp,raw,ping}.c and their net/ipv6 counterparts print it.
func (s *sockWork) inet(w *kernel.Walk) {
	l := s.r.l
	w.Guard(s.addr, l.Num)
	w.Guard(s.addr, l.Dport)
	w.Guard(s.addr, l.Daddr)
	family := w.Uint(s.addr, l.Family)
	if w.OK() && family != familyInet && family != familyInet6 {
		w.Failf("address family %d", family)
	}
	s.row.Protocol = s.kind.String()
	if family == familyInet6 && s.kind != kindRaw6 {
		s.row.Protocol += "6"
	}
	switch {
	case s.kind == kindTCP && s.row.Code == tcpTimeWait:
		s.timeWait(w, family)
	case s.kind == kindTCP && s.row.Code == tcpRequest:
		s.request(w, family)
	default:
		s.addresses(w, family)
		s.fullSock(w)
	}
	name := fmt.Sprint(s.row.Code)
	if int(s.row.Code) < len(tcpStates) && tcpStates[s.row.Code] != "" {
		name = tcpStates[s.row.Code]
	}
	s.row.State = &name
}

// fullSock reads what only whole sockets have.
func (s *sockWork) fullSock(w *kernel.Walk) {
	l, in := s.r.l, s.r.inet
	s.owner(w)
	s.typ(w)
	local, remote := bigEndian(w.Uint(s.addr, in.Sport)), bigEndian(w.Uint(s.addr, l.Dport))
	switch s.kind {
	case kindTCP:
		tx := uint32(w.Uint(s.addr, in.WriteSeq)) - uint32(w.Uint(s.addr, in.SndUna))
		rx := max(int32(uint32(w.Uint(s.addr, in.RcvNxt))-uint32(w.Uint(s.addr, in.CopiedSeq))), 0)
		if s.row.Code == tcpListen {
			rx = int32(w.Uint(s.addr, l.Backlog))
		}
		urx := uint32(rx)
		s.row.TxQueue, s.row.RxQueue = &tx, &urx
	case kindUDP, kindUDPLite:
		s.row.TxQueue, s.row.RxQueue = s.writeQueue(w), s.readQueue(w)
		*s.row.RxQueue -= uint32(w.Uint(s.addr, in.UDPDeficit))
	case kindRaw, kindRaw6:
		s.row.TxQueue, s.row.RxQueue = s.writeQueue(w), s.readQueue(w)
		local, remote = uint32(w.Uint(s.addr, l.Num)), 0
		s.row.Number = &local
	case kindPing:
		s.row.TxQueue, s.row.RxQueue = s.writeQueue(w), s.readQueue(w)
	}
	s.row.LocalPort, s.row.RemotePort = &local, &remote
}

// timeWait reads a struct inet_timewait_sock.
func (s *sockWork) timeWait(w *kernel.Walk, family uint64) {
	s.addresses(w, family)
	s.row.Code = uint8(w.Uint(s.addr, s.r.inet.TWState))
	local, remote := bigEndian(w.Uint(s.addr, s.r.inet.TWSport)), bigEndian(w.Uint(s.addr, s.r.l.Dport))
	s.row.LocalPort, s.row.RemotePort = &local, &remote
	s.row.TxQueue, s.row.RxQueue = new(uint32), new(uint32)
}

// request reads a struct request_sock: a connection not yet accepted by TCP itself.
func (s *sockWork) request(w *kernel.Walk, family uint64) {
	l := s.r.l
	s.row.Code, s.row.Refs = tcpSynRecv, 0 // /proc prints no count
	local, remote := uint32(w.Uint(s.addr, l.Num)), bigEndian(w.Uint(s.addr, l.Dport))
	s.row.LocalPort, s.row.RemotePort = &local, &remote
	s.row.TxQueue, s.row.RxQueue = new(uint32), new(uint32)
	listener := w.Follow(s.addr, l.Listener)
	ops := w.Ptr(s.addr, s.r.inet.ReqOps)
	if family == familyInet {
		s.addresses(w, family)
	} else {
		// An IPv4 request to an IPv6 listener has its IPv4 addresses only; /proc
		// prints what happens to be where the others would be.
		s.part(w, "addresses", func() {
			if w.Int(ops, s.r.inet.ReqFamily) == familyInet {
				s.addresses4(w, "::ffff:")
			} else {
				s.addresses(w, family)
			}
		})
	}
	s.part(w, "uid", func() {
		if listener == 0 {
			w.Failf("no listener")
		}
		of := &sockWork{r: s.r, addr: listener}
		of.owner(w)
		s.row.UID = of.row.UID
		s.row.Errors = append(s.row.Errors, of.row.Errors...)
	})
}

// addresses reads both ends' addresses.
func (s *sockWork) addresses(w *kernel.Walk, family uint64) {
	if family == familyInet {
		s.addresses4(w, "")
		return
	}
	l := s.r.l
	read := func(f btf.Field) *string {
		var b [16]byte
		w.Read(w.At(s.addr, f), b[:])
		a := netip.AddrFrom16(b).String()
		return &a
	}
	s.row.LocalAddress, s.row.RemoteAddress = read(l.Saddr6), read(l.Daddr6)
}

// addresses4 reads both ends' IPv4 addresses.
func (s *sockWork) addresses4(w *kernel.Walk, prefix string) {
	read := func(f btf.Field) *string {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], uint32(w.Uint(s.addr, f)))
		a := prefix + netip.AddrFrom4(b).String()
		return &a
	}
	s.row.LocalAddress, s.row.RemoteAddress = read(s.r.l.Saddr), read(s.r.l.Daddr)
}

// bigEndian returns the value of a port in network order.
func bigEndian(port uint64) uint32 { return uint32(bits.ReverseBytes16(uint16(port))) }
