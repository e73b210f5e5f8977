package linux

import (
	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// packetLayout is net/packet/internal.h.
type packetLayout struct {
	Num     btf.Field `btf:"packet_sock.num ?"`
	IfIndex btf.Field `btf:"packet_sock.ifindex ?"`
}

// packetList enters a namespace's list of packet sockets, a table of one chain.
func (r *sockReader) packetList(head mem.Virt) {
	r.table(kindPacket, head, func(w *kernel.Walk) []mem.Virt { return []mem.Virt{head} })
}

// packet reads a packet socket as packet_seq_show prints it (net/packet/af_packet.c).
func (s *sockWork) packet(w *kernel.Walk) {
	s.row.Protocol = "packet"
	s.owner(w)
	s.typ(w)
	s.row.RxQueue = s.readQueue(w)
	number := bigEndian(w.Uint(s.addr, s.r.packet.Num))
	s.row.Number, s.row.Interface = &number, nil
	if i := int(w.Int(s.addr, s.r.packet.IfIndex)); i != 0 {
		s.row.Interface = &i
	}
}
