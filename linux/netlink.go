package linux

import (
	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// netlinkLayout is net/netlink/af_netlink.h and include/linux/rhashtable.h.
type netlinkLayout struct {
	Table btf.Field `btf:"netlink_table"`
	Hash  btf.Field `btf:"netlink_table.hash.tbl"`
	Node  btf.Field `btf:"netlink_sock.node"`
	Port  btf.Field `btf:"netlink_sock.portid"`

	Size    btf.Field `btf:"bucket_table.size"`
	Nest    btf.Field `btf:"bucket_table.nest"`
	Future  btf.Field `btf:"bucket_table.future_tbl"`
	Buckets btf.Field `btf:"bucket_table.buckets"`
}

// maxNetlink is MAX_LINKS (include/uapi/linux/netlink.h): netlink protocols.
const maxNetlink = 32

func (r *sockReader) beginNetlink() error {
	table, err := r.v.Symbol("nl_table")
	if err != nil {
		return err
	}
	r.links = enqueue(r.q, workNetlink, table, func() *netlinkWork { return &netlinkWork{r: r, at: table} })
	return nil
}

// netlinkWork is nl_table: one hash table of sockets for each netlink protocol.
type netlinkWork struct {
	r      *sockReader
	at     mem.Virt
	tables []*sockTable
	err    error
}

func (n *netlinkWork) run(w *kernel.Walk) {
	l := n.r.netlink
	n.tables = n.tables[:0]
	array := w.Pointer(n.at)
	for i := range mem.Virt(maxNetlink) {
		if tbl := w.Ptr(array+i*mem.Virt(l.Table.Size), l.Hash); tbl != 0 {
			if t := n.r.rhashtable(tbl); t != nil && w.OK() {
				n.tables = append(n.tables, t)
			}
		}
	}
	n.err = w.Err()
}

// rhashtable enters the bucket_table at tbl, and while its entries are moving to
// a larger or smaller one, that too.
func (r *sockReader) rhashtable(tbl mem.Virt) *sockTable {
	l := r.netlink
	return enqueue(r.q, workTable, tbl, func() *sockTable {
		t := &sockTable{r: r, kind: kindNetlink, addr: tbl, node: int64(l.Node.Offset), mask: 1}
		t.heads = func(w *kernel.Walk) []mem.Virt {
			t.next = nil
			if next := w.Follow(tbl, l.Future); next != 0 {
				t.next = r.rhashtable(next)
			}
			if w.Uint(tbl, l.Nest) != 0 {
				w.Failf("nested buckets, which a kernel short of memory makes, are not known")
			}
			return buckets(w, w.At(tbl, l.Buckets), w.Uint(tbl, l.Size), 8, 0)
		}
		return t
	})
}

// netlink reads a netlink socket as netlink_seq_show prints it (net/netlink/af_netlink.c).
func (s *sockWork) netlink(w *kernel.Walk) {
	s.row.Protocol = "netlink"
	s.owner(w)
	s.typ(w)
	number, port := uint32(w.Uint(s.addr, s.r.l.Protocol)), uint32(w.Uint(s.addr, s.r.netlink.Port))
	s.row.Number, s.row.LocalPort = &number, &port
	s.row.TxQueue, s.row.RxQueue = s.writeQueue(w), s.readQueue(w)
}
