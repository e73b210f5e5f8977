package linux

import (
	"slices"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// ownerLayout is what of a task leads to sockets and network namespaces.
type ownerLayout struct {
	IDR    btf.Field `btf:"pid_namespace.idr"`
	ProxyN btf.Field `btf:"nsproxy.net_ns"`
}

func (r *sockReader) beginOwners() error {
	ns, err := r.v.Symbol("init_pid_ns")
	if err != nil {
		return err
	}
	r.ids = enqueue(r.q, workPIDs, ns, func() *pidsWork { return &pidsWork{r: r, ns: ns} })
	return nil
}

// pidsWork is the first PID namespace's IDR: all tasks.
type pidsWork struct {
	r    *sockReader
	ns   mem.Virt
	pids []*pidWork
	err  error
}

func (p *pidsWork) run(w *kernel.Walk) {
	p.pids = p.pids[:0]
	for _, e := range xarrayEntries(w, p.r.xa, w.At(p.ns, p.r.own.IDR)) {
		if x := enqueue(p.r.q, workPID, e.Ptr, func() *pidWork { return &pidWork{r: p.r, pid: e.Ptr} }); x != nil {
			p.pids = append(p.pids, x)
		}
	}
	p.err = w.Err()
}

// pidWork is a task, found by its struct pid.
type pidWork struct {
	r         *sockReader
	pid       mem.Virt
	present   bool
	tid, tgid int
	comm      string
	files     *filesWork
	net       *netWork
	err       error
}

func (p *pidWork) run(w *kernel.Walk) {
	l := p.r.task
	p.present, p.files, p.net = false, nil, nil
	first := w.Pointer(w.At(p.pid, l.PIDTasks) + pidTypePID*8)
	if !w.OK() || first == 0 {
		p.err = w.Err()
		return // a process group's or session's number
	}
	t := first - mem.Virt(l.PIDLinks.Offset)
	w.Guard(t, l.TID)
	p.present = true
	p.tid, p.tgid, p.comm = int(w.Int(t, l.TID)), int(w.Int(t, l.TGID)), w.Text(t, l.Comm)
	files, proxy := w.Follow(t, l.Files), w.Ptr(t, l.Nsproxy)
	if p.err = w.Err(); p.err != nil {
		return
	}
	if files != 0 {
		p.files = enqueue(p.r.q, workFiles, files, func() *filesWork { return &filesWork{r: p.r, addr: files} })
	}
	if proxy != 0 { // to meet its network namespace early
		if net := w.Ptr(proxy, p.r.own.ProxyN); w.OK() {
			p.net = p.r.netAt(net)
		}
	}
}

// filesWork is a descriptor table.
type filesWork struct {
	r    *sockReader
	addr mem.Virt
	fds  []sockFD
	err  error
}

type sockFD struct {
	fd   int
	file *fileWork
}

func (f *filesWork) run(w *kernel.Walk) {
	f.r.q.held -= len(f.fds)
	f.fds = f.fds[:0]
	for _, o := range fdTable(w, f.r.fds, f.addr) {
		x := enqueue(f.r.q, workFile, o.File, func() *fileWork { return &fileWork{r: f.r, addr: o.File} })
		if x != nil {
			f.fds = append(f.fds, sockFD{o.FD, x})
		}
	}
	if f.r.q.held += len(f.fds); f.r.q.held > maxHeld {
		f.r.q.full = true
	}
	f.err = w.Err()
}

// fileWork is an open file: the sock behind it when it is a socket.
type fileWork struct {
	r      *sockReader
	addr   mem.Virt
	sk     mem.Virt
	kind   sockKind
	linked bool // the sock is of this kind and linked into its table
	err    error
}

func (f *fileWork) run(w *kernel.Walk) {
	f.sk, f.linked = 0, false
	if w.Ptr(f.addr, f.r.l.FileOps) == f.r.fileOps && w.OK() {
		f.sk = w.Follow(w.Follow(f.addr, f.r.l.FileData), f.r.l.SocketSK)
		if w.OK() && f.sk != 0 {
			// A table leads here too, often by a longer way: have the page by then.
			l := f.r.l
			f.kind, f.linked = kindOf(w.Uint(f.sk, l.Family), w.Uint(f.sk, l.Type), w.Uint(f.sk, l.Protocol))
			f.linked = f.linked && w.Uint(f.sk, l.NodePrev) != 0
		}
	}
	f.err = w.Err()
}

// kindOf tells which table a socket is in once it is bound or connected; not ok for
// those of families that are not listed, and netlink, which is not linked through sock.
func kindOf(family, typ, protocol uint64) (kind sockKind, ok bool) {
	const (
		unix, packet                   = 1, 17
		stream, dgram, raw             = 1, 2, 3
		icmp, tcp, udp, icmp6, udpLite = 1, 6, 17, 58, 136
	)
	switch {
	case family == unix:
		return kindUnix, true
	case family == packet:
		return kindPacket, true
	case family != familyInet && family != familyInet6:
		return 0, false
	case typ == raw && family == familyInet:
		return kindRaw, true
	case typ == raw:
		return kindRaw6, true
	case typ == stream && protocol == tcp:
		return kindTCP, true
	case typ != dgram:
		return 0, false
	case protocol == udp:
		return kindUDP, true
	case protocol == udpLite:
		return kindUDPLite, true
	case protocol == icmp, protocol == icmp6:
		return kindPing, true
	}
	return 0, false
}

// unlisted returns the sockets that processes hold and that are linked into a
// table which does not lead to them, each with a note of that.
func (r *sockReader) unlisted() ([]*sockWork, error) {
	inTable := make(map[mem.Virt]bool)
	for _, t := range r.tablesInUse() {
		for _, c := range t.chains {
			for _, s := range c.socks {
				inTable[s.addr] = true
			}
		}
	}
	var out []*sockWork
	for _, x := range r.q.all {
		f, ok := x.(*fileWork)
		if !ok || f.err != nil || !f.linked || inTable[f.sk] {
			continue
		}
		inTable[f.sk] = true
		if s := r.sock(f.kind, f.sk); s != nil {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, r.q.run()
}

// holders returns who holds each sock, by pid and descriptor. A thread counts only
// where its table is not its process's.
func (r *sockReader) holders() map[mem.Virt][]SockHolder {
	type table struct {
		tgid  int
		files *filesWork
	}
	pids := slices.Clone(r.ids.pids)
	pids = slices.DeleteFunc(pids, func(p *pidWork) bool {
		if p.err != nil && p.present {
			r.v.Find(taskName(p.tid), "%v", p.err)
		}
		return !p.present || p.err != nil || p.files == nil
	})
	slices.SortStableFunc(pids, func(a, b *pidWork) int {
		if a.tgid != b.tgid {
			return a.tgid - b.tgid
		}
		return a.tid - b.tid
	})
	seen := make(map[table]bool)
	out := make(map[mem.Virt][]SockHolder)
	for _, p := range pids {
		if key := (table{p.tgid, p.files}); seen[key] {
			continue
		} else {
			seen[key] = true
		}
		if p.files.err != nil {
			r.v.Find(taskName(p.tid), "descriptors: %v", p.files.err)
		}
		for _, fd := range p.files.fds {
			if fd.file.err != nil {
				r.v.Find(taskName(p.tid), "descriptor %d: %v", fd.fd, fd.file.err)
				continue
			}
			if sk := fd.file.sk; sk != 0 {
				out[sk] = append(out[sk], SockHolder{p.tgid, p.comm, fd.fd})
			}
		}
	}
	return out
}
