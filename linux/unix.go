package linux

import (
	"bytes"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// unixLayout is include/net/af_unix.h. It is the module's where unix is one.
type unixLayout struct {
	Addr btf.Field `btf:"unix_sock.addr ?"`
	Len  btf.Field `btf:"unix_address.len ?"`
	Name btf.Field `btf:"unix_address.name ?"`
	Path btf.Field `btf:"sockaddr_un.sun_path ?"`
}

// unixBuckets is twice UNIX_HASH_SIZE until 5.18, UNIX_HASH_SIZE since.
const unixBuckets = 512

// unixStates is what the state of a socket with and without a struct socket reads
// as (enum socket_state, include/uapi/linux/net.h).
var unixStates = [...]string{1: "UNCONNECTED", 2: "CONNECTING", 3: "CONNECTED", 4: "DISCONNECTING"}

// beginUnix enters the one table of kernels before 6.0.
func (r *sockReader) beginUnix() error {
	t, err := r.v.Symbol("unix_socket_table")
	if err == nil {
		r.unixTable(t)
	}
	return err
}

func (r *sockReader) unixTable(heads mem.Virt) {
	r.table(kindUnix, heads, func(w *kernel.Walk) []mem.Virt { return buckets(w, heads, unixBuckets, 8, 0) })
}

// unix reads a unix socket as unix_seq_show prints it (net/unix/af_unix.c).
func (s *sockWork) unix(w *kernel.Walk) {
	s.row.Protocol = "unix"
	s.owner(w)
	s.typ(w)
	const established = 1
	state := s.row.Code
	s.row.Code = 4
	if w.Ptr(s.addr, s.r.l.Socket) != 0 {
		s.row.Code = 1
	}
	switch {
	case state == established && s.row.Code == 1:
		s.row.Code = 3
	case state == established:
		s.row.Code = 2
	}
	name := unixStates[s.row.Code]
	if state == tcpListen {
		name = "LISTEN"
	}
	s.row.State = &name
	if addr := w.Follow(s.addr, s.r.unix.Addr); addr != 0 {
		s.part(w, "path", func() { s.row.Path = s.r.unix.path(w, addr) })
	}
}

// path returns the name in the unix_address at a, as /proc/net/unix shows it.
func (l *unixLayout) path(w *kernel.Walk, a mem.Virt) *string {
	const maxPath = 109 // sizeof(sockaddr_un.sun_path), and a NUL that binding appends
	n := w.Uint(a, l.Len)
	if n -= uint64(l.Path.Offset); w.OK() && n > maxPath {
		w.Failf("name of %d bytes: %w", n, kernel.ErrTooLong)
	}
	b := w.Bytes(w.At(a, l.Name)+mem.Virt(l.Path.Offset), n)
	if !w.OK() {
		return nil
	}
	if len(b) > 0 && b[0] != 0 {
		b = b[:len(b)-1]
	}
	s := string(bytes.ReplaceAll(b, []byte{0}, []byte{'@'}))
	return &s
}
