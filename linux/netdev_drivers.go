package linux

import (
	"fmt"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// findDrivers finds out who gathers the counters of each device.
func (r *statReader) findDrivers(devs []*devWork) error {
	var foreign []mem.Virt
	for _, d := range devs {
		fn := d.stats64
		if fn == 0 {
			fn = d.stats32
		}
		if _, known := r.drivers[fn]; known || fn == 0 {
			continue
		}
		if s, off, ok := r.v.Symbols().Symbolize(fn); ok && off == 0 {
			r.drivers[fn] = r.builtin(s.Name)
		} else {
			r.drivers[fn] = driverStats{}
			foreign = append(foreign, fn)
		}
	}
	if len(foreign) == 0 {
		return nil
	}
	modules, err := Modules(r.v)
	if err != nil {
		return err
	}
	for _, fn := range foreign {
		r.drivers[fn] = r.module(fn, modules)
	}
	return nil
}

// builtin returns how a function of the kernel's image gathers counters.
func (r *statReader) builtin(name string) driverStats {
	d := driverStats{name: name}
	switch name {
	case "loopback_get_stats64":
		d.add = func(w *kernel.Walk, dev mem.Virt, s *linkStats) {
			packets, bytes := r.lstats(w, dev)
			s[statRxPackets], s[statTxPackets], s[statRxBytes], s[statTxBytes] = packets, packets, bytes, bytes
		}
	case "dev_get_tstats64", "ip_tunnel_get_stats64":
		d.add = func(w *kernel.Walk, dev mem.Virt, s *linkStats) {
			r.device(w, dev, s)
			r.tstats(w, dev, s)
		}
	case "dummy_get_stats64":
		d.add = r.dummy
	}
	return d
}

// dummy is drivers/net/dummy.c.
func (r *statReader) dummy(w *kernel.Walk, dev mem.Virt, s *linkStats) {
	s[statTxPackets], s[statTxBytes] = r.lstats(w, dev)
}

// module returns how the function of a module's that lies at fn gathers counters.
// A module has one such function at most, so that its name tells which.
func (r *statReader) module(fn mem.Virt, modules []Module) driverStats {
	var in *Module
	for i := range modules {
		m := &modules[i]
		if fn >= m.Base && uint64(fn-m.Base) < m.Size && (in == nil || m.Base > in.Base) {
			in = m
		}
	}
	if in == nil {
		return driverStats{name: fmt.Sprintf("the function at %v, in no module,", fn)}
	}
	d := driverStats{name: "module " + in.Name}
	if in.Name == "dummy" {
		d.add = r.dummy
		return d
	}
	switch in.Name {
	case "veth":
		d.add, d.err = bindDriver(r.v, in.Name, r.veth)
	case "virtio_net":
		d.add, d.err = bindDriver(r.v, in.Name, r.virtio)
	case "bridge":
		d.add, d.err = bindDriver(r.v, in.Name, r.bridge)
	case "tun":
		d.add, d.err = bindDriver(r.v, in.Name, r.tun)
	}
	return d
}

// addStats adds a driver's counters to s.
type addStats = func(w *kernel.Walk, dev mem.Virt, s *linkStats)

// bindDriver binds a driver's layout to its module's types.
func bindDriver[L any](v *kernel.View, module string, read func(w *kernel.Walk, l *L, dev mem.Virt, s *linkStats)) (addStats, error) {
	l := new(L)
	types, err := v.ModuleTypes(v, module)
	if err == nil {
		err = btf.Bind(types, l)
	}
	return func(w *kernel.Walk, dev mem.Virt, s *linkStats) { read(w, l, dev, s) }, err
}

// vethLayout is drivers/net/veth.c, since 5.11: before, modules have no types.
type vethLayout struct {
	Peer    btf.Field `btf:"veth_priv.peer"`
	Dropped btf.Field `btf:"veth_priv.dropped"`
	Queues  btf.Field `btf:"veth_priv.rq"`
	Queue   btf.Field `btf:"veth_rq"`
	Drops   btf.Field `btf:"veth_rq.stats.vs.rx_drops"`
	Packets btf.Field `btf:"veth_rq.stats.vs.xdp_packets"`
	Bytes   btf.Field `btf:"veth_rq.stats.vs.xdp_bytes"`
	TxErr   btf.Field `btf:"veth_rq.stats.vs.xdp_tx_err"`
	XmitErr btf.Field `btf:"veth_rq.stats.vs.peer_tq_xdp_xmit_err"`
}

// maxQueues bounds the queues of a device; the kernel allows 4096.
const maxQueues = 1 << 16

// veth is veth_get_stats64: what one end sent, the other received.
func (r *statReader) veth(w *kernel.Walk, l *vethLayout, dev mem.Virt, s *linkStats) {
	priv := r.private(w, dev)
	r.tstats(w, dev, s)
	rx := r.vethReceived(w, l, dev)
	s[statRxPackets] += rx.packets
	s[statRxBytes] += rx.bytes
	s[statRxDropped] = rx.drops + rx.xmitErr
	s[statTxDropped] = w.Uint(priv, l.Dropped) + rx.txErr
	peer := w.Follow(priv, l.Peer)
	if peer == 0 || !w.OK() {
		return
	}
	var other linkStats
	r.tstats(w, peer, &other)
	s[statRxPackets] += other[statTxPackets]
	s[statRxBytes] += other[statTxBytes]
	rx = r.vethReceived(w, l, peer)
	s[statTxPackets] += rx.packets
	s[statTxBytes] += rx.bytes
	s[statTxDropped] += rx.xmitErr
	s[statRxDropped] += rx.txErr
}

// vethReceived is the sum of a device's receive queues, struct veth_stats.
type vethReceived struct{ packets, bytes, drops, txErr, xmitErr uint64 }

func (r *statReader) vethReceived(w *kernel.Walk, l *vethLayout, dev mem.Virt) vethReceived {
	var s linkStats
	r.queues(w, w.Ptr(r.private(w, dev), l.Queues), l.Queue, w.Uint(dev, r.l.RxQueues), &s,
		counter{l.Packets, 0}, counter{l.Bytes, 1}, counter{l.Drops, 2}, counter{l.TxErr, 3}, counter{l.XmitErr, 4})
	return vethReceived{s[0], s[1], s[2], s[3], s[4]}
}

// queues adds the fields of n structures of a type from at on.
func (r *statReader) queues(w *kernel.Walk, at mem.Virt, typ btf.Field, n uint64, s *linkStats, fields ...counter) {
	if n > maxQueues {
		w.Failf("%d queues: %w", n, kernel.ErrTooLong)
	}
	for i := uint64(0); i < n && w.OK(); i++ {
		for _, f := range fields {
			s[f.stat] += w.Uint(at+mem.Virt(i*uint64(typ.Size)), f.field)
		}
	}
}

// virtioLayout is drivers/net/virtio_net.c.
type virtioLayout struct {
	Pairs     btf.Field `btf:"virtnet_info.max_queue_pairs"`
	Recv      btf.Field `btf:"virtnet_info.rq"`
	Send      btf.Field `btf:"virtnet_info.sq"`
	RecvQueue btf.Field `btf:"receive_queue"`
	SendQueue btf.Field `btf:"send_queue"`
	RxPackets btf.Field `btf:"receive_queue.stats.packets"`
	RxBytes   btf.Field `btf:"receive_queue.stats.bytes"`
	RxDrops   btf.Field `btf:"receive_queue.stats.drops"`
	TxPackets btf.Field `btf:"send_queue.stats.packets"`
	TxBytes   btf.Field `btf:"send_queue.stats.bytes"`
	TxErrors  btf.Field `btf:"send_queue.stats.tx_timeouts ?"` // since 5.17
}

// virtio is virtnet_stats.
func (r *statReader) virtio(w *kernel.Walk, l *virtioLayout, dev mem.Virt, s *linkStats) {
	priv := r.private(w, dev)
	pairs := w.Uint(priv, l.Pairs)
	r.queues(w, w.Ptr(priv, l.Recv), l.RecvQueue, pairs, s,
		counter{l.RxPackets, statRxPackets}, counter{l.RxBytes, statRxBytes}, counter{l.RxDrops, statRxDropped})
	sent := []counter{{l.TxPackets, statTxPackets}, {l.TxBytes, statTxBytes}}
	if l.TxErrors.Known {
		sent = append(sent, counter{l.TxErrors, statTxErrors})
	}
	r.queues(w, w.Ptr(priv, l.Send), l.SendQueue, pairs, s, sent...)
	var own linkStats
	r.device(w, dev, &own)
	for _, i := range []int{statTxDropped, statTxFifo, statRxLength, statRxFrame} {
		s[i] = own[i]
	}
}

// bridgeLayout is net/bridge/br_private.h until 5.11, when it took to tstats.
type bridgeLayout struct {
	Stats btf.Field `btf:"net_bridge.stats"`
}

// bridge is br_get_stats64.
func (r *statReader) bridge(w *kernel.Walk, l *bridgeLayout, dev mem.Virt, s *linkStats) {
	r.device(w, dev, s)
	t := r.l
	r.sum(w, w.Ptr(r.private(w, dev), l.Stats), s, counter{t.TRxPkts, statRxPackets}, counter{t.TRxBytes, statRxBytes},
		counter{t.TTxPkts, statTxPackets}, counter{t.TTxBytes, statTxBytes})
}

// tunLayout is drivers/net/tun.c, since 5.12.
type tunLayout struct {
	FrameErrors btf.Field `btf:"tun_struct.rx_frame_errors"`
}

// tun is tun_net_get_stats64.
func (r *statReader) tun(w *kernel.Walk, l *tunLayout, dev mem.Virt, s *linkStats) {
	r.device(w, dev, s)
	r.tstats(w, dev, s)
	s[statRxFrame] += w.Uint(r.private(w, dev), l.FrameErrors)
}
