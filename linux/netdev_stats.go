package linux

import (
	"math/bits"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// NetStats is a device's counters as /proc/net/dev shows them, nil where they are
// not known.
type NetStats struct {
	RxBytes      *uint64 `json:"rx_bytes"`
	RxPackets    *uint64 `json:"rx_packets"`
	RxErrors     *uint64 `json:"rx_errors"`
	RxDropped    *uint64 `json:"rx_dropped"`
	RxFifo       *uint64 `json:"rx_fifo"`
	RxFrame      *uint64 `json:"rx_frame"`
	RxCompressed *uint64 `json:"rx_compressed"`
	Multicast    *uint64 `json:"multicast"`
	TxBytes      *uint64 `json:"tx_bytes"`
	TxPackets    *uint64 `json:"tx_packets"`
	TxErrors     *uint64 `json:"tx_errors"`
	TxDropped    *uint64 `json:"tx_dropped"`
	TxFifo       *uint64 `json:"tx_fifo"`
	Collisions   *uint64 `json:"collisions"`
	TxCarrier    *uint64 `json:"tx_carrier"`
	TxCompressed *uint64 `json:"tx_compressed"`
}

// Counters in the order of struct net_device_stats (include/linux/netdevice.h).
const (
	statRxPackets = iota
	statTxPackets
	statRxBytes
	statTxBytes
	statRxErrors
	statTxErrors
	statRxDropped
	statTxDropped
	statMulticast
	statCollisions
	statRxLength
	statRxOver
	statRxCRC
	statRxFrame
	statRxFifo
	statRxMissed
	statTxAborted
	statTxCarrier
	statTxFifo
	statTxHeartbeat
	statTxWindow
	statRxCompressed
	statTxCompressed
	statCount
)

type linkStats [statCount]uint64

// shown is dev_seq_printf_stats (net/core/net-procfs.c).
func (s *linkStats) shown() NetStats {
	p := func(which ...int) *uint64 {
		var n uint64
		for _, i := range which {
			n += s[i]
		}
		return &n
	}
	return NetStats{
		RxBytes: p(statRxBytes), RxPackets: p(statRxPackets), RxErrors: p(statRxErrors),
		RxDropped: p(statRxDropped, statRxMissed), RxFifo: p(statRxFifo),
		RxFrame:      p(statRxLength, statRxOver, statRxCRC, statRxFrame),
		RxCompressed: p(statRxCompressed), Multicast: p(statMulticast),
		TxBytes: p(statTxBytes), TxPackets: p(statTxPackets), TxErrors: p(statTxErrors),
		TxDropped: p(statTxDropped), TxFifo: p(statTxFifo), Collisions: p(statCollisions),
		TxCarrier:    p(statTxCarrier, statTxAborted, statTxWindow, statTxHeartbeat),
		TxCompressed: p(statTxCompressed),
	}
}

// netStatsLayout is include/linux/netdevice.h.
type netStatsLayout struct {
	Stats     btf.Field `btf:"net_device.stats"`
	RxDropped btf.Field `btf:"net_device.rx_dropped ?"` // until 5.18, when they became core_stats
	TxDropped btf.Field `btf:"net_device.tx_dropped ?"`
	Core      btf.Field `btf:"net_device.core_stats ?"`
	CoreRx    btf.Field `btf:"net_device_core_stats.rx_dropped ?"`
	CoreTx    btf.Field `btf:"net_device_core_stats.tx_dropped ?"`
	PerCPU    btf.Field `btf:"net_device.tstats"` // a union with lstats and dstats
	Type      btf.Field `btf:"net_device.pcpu_stat_type ?"`
	LPackets  btf.Field `btf:"pcpu_lstats.packets"`
	LBytes    btf.Field `btf:"pcpu_lstats.bytes"`
	TRxPkts   btf.Field `btf:"pcpu_sw_netstats.rx_packets"`
	TRxBytes  btf.Field `btf:"pcpu_sw_netstats.rx_bytes"`
	TTxPkts   btf.Field `btf:"pcpu_sw_netstats.tx_packets"`
	TTxBytes  btf.Field `btf:"pcpu_sw_netstats.tx_bytes"`
	DRxPkts   btf.Field `btf:"pcpu_dstats.rx_packets ?"`
	DRxBytes  btf.Field `btf:"pcpu_dstats.rx_bytes ?"`
	DTxPkts   btf.Field `btf:"pcpu_dstats.tx_packets ?"`
	DTxBytes  btf.Field `btf:"pcpu_dstats.tx_bytes ?"`
	DRxDrops  btf.Field `btf:"pcpu_dstats.rx_drops ?"`
	DTxDrops  btf.Field `btf:"pcpu_dstats.tx_drops ?"`
	Priv      btf.Field `btf:"net_device.priv ?"` // since 6.10; behind the structure before
	Device    btf.Field `btf:"net_device"`
	RxQueues  btf.Field `btf:"net_device.num_rx_queues"`
	CPUMask   btf.Field `btf:"cpumask"`
}

// Values of enum netdev_stat_type.
const (
	statTypeT = 2 // NETDEV_PCPU_STAT_TSTATS
	statTypeD = 3 // NETDEV_PCPU_STAT_DSTATS
)

// statReader reads devices' counters.
type statReader struct {
	v       *kernel.View
	l       *netStatsLayout
	drivers map[mem.Virt]driverStats // by what gathers the counters
	offsets mem.Virt                 // __per_cpu_offset
	mask    mem.Virt                 // __cpu_possible_mask
}

// driverStats adds a driver's counters to s; nil when the driver is not known.
type driverStats struct {
	name string
	add  func(w *kernel.Walk, dev mem.Virt, s *linkStats)
	err  error
}

// readNetStats fills in the counters of devs.
func readNetStats(v *kernel.View, devs []*devWork) error {
	r := &statReader{v: v, drivers: make(map[mem.Virt]driverStats)}
	var err error
	if r.l, err = kernel.Layout[netStatsLayout](v.Kernel); err != nil {
		return err
	}
	if r.offsets, err = v.Symbol("__per_cpu_offset"); err != nil {
		return err
	}
	if r.mask, err = v.Symbol("__cpu_possible_mask"); err != nil {
		return err
	}
	if err := r.findDrivers(devs); err != nil {
		return err
	}
	errs := make([]error, len(devs))
	err = v.Each(len(devs), func(i int, w *kernel.Walk) {
		d := devs[i]
		d.row.NetStats = NetStats{}
		var s linkStats
		if errs[i] = w.Try(func() { r.read(w, d, &s) }); errs[i] == nil {
			d.row.NetStats = s.shown()
		}
	}, nil)
	for i, d := range devs {
		if errs[i] != nil {
			d.row.Errors = append(d.row.Errors, message("counters", errs[i]))
		}
	}
	return err
}

// read is dev_get_stats (net/core/dev.c).
func (r *statReader) read(w *kernel.Walk, d *devWork, s *linkStats) {
	l, dev := r.l, d.addr
	kind := uint64(0)
	if l.Type.Known {
		kind = w.Uint(dev, l.Type)
	}
	fn := d.stats64
	if fn == 0 {
		fn = d.stats32
	}
	switch {
	case fn != 0:
		driver := r.drivers[fn]
		if driver.add == nil {
			w.Failf("what %s keeps is not known", driver.name)
			return
		}
		w.Fail(driver.err)
		driver.add(w, dev, s)
	case kind == statTypeT:
		r.device(w, dev, s)
		r.tstats(w, dev, s)
	case kind == statTypeD:
		r.dstats(w, dev, s)
	default:
		r.device(w, dev, s)
	}
	r.core(w, dev, s)
}

// core adds what the kernel itself dropped.
func (r *statReader) core(w *kernel.Walk, dev mem.Virt, s *linkStats) {
	l := r.l
	if l.RxDropped.Known && l.TxDropped.Known {
		s[statRxDropped] += w.Uint(dev, l.RxDropped)
		s[statTxDropped] += w.Uint(dev, l.TxDropped)
		return
	}
	if core := w.Ptr(dev, l.Core); core != 0 {
		r.sum(w, core, s, counter{l.CoreRx, statRxDropped}, counter{l.CoreTx, statTxDropped})
	}
}

// device adds net_device.stats.
func (r *statReader) device(w *kernel.Walk, dev mem.Virt, s *linkStats) {
	if r.l.Stats.Size != statCount*8 {
		w.Failf("field %q: %d bytes", r.l.Stats.Name, r.l.Stats.Size)
	}
	b := w.Bytes(w.At(dev, r.l.Stats), statCount*8)
	for i := range len(b) / 8 {
		s[i] += word(b, i*8)
	}
}

// tstats adds struct pcpu_sw_netstats, as dev_fetch_sw_netstats does.
func (r *statReader) tstats(w *kernel.Walk, dev mem.Virt, s *linkStats) {
	l := r.l
	r.sum(w, w.Ptr(dev, l.PerCPU), s, counter{l.TRxPkts, statRxPackets}, counter{l.TRxBytes, statRxBytes},
		counter{l.TTxPkts, statTxPackets}, counter{l.TTxBytes, statTxBytes})
}

// dstats adds struct pcpu_dstats, as dev_get_dstats64 does.
func (r *statReader) dstats(w *kernel.Walk, dev mem.Virt, s *linkStats) {
	l := r.l
	r.sum(w, w.Ptr(dev, l.PerCPU), s, counter{l.DRxPkts, statRxPackets}, counter{l.DRxBytes, statRxBytes},
		counter{l.DTxPkts, statTxPackets}, counter{l.DTxBytes, statTxBytes},
		counter{l.DRxDrops, statRxDropped}, counter{l.DTxDrops, statTxDropped})
}

// lstats returns struct pcpu_lstats, as dev_lstats_read does.
func (r *statReader) lstats(w *kernel.Walk, dev mem.Virt) (packets, bytes uint64) {
	var s linkStats
	r.sum(w, w.Ptr(dev, r.l.PerCPU), &s, counter{r.l.LPackets, statRxPackets}, counter{r.l.LBytes, statRxBytes})
	return s[statRxPackets], s[statRxBytes]
}

// counter is a field and what it counts.
type counter struct {
	field btf.Field
	stat  int
}

// sum adds the fields of the per-CPU structure at p over all possible CPUs.
func (r *statReader) sum(w *kernel.Walk, p mem.Virt, s *linkStats, fields ...counter) {
	const maxCPUs = 8192
	mask := w.Bytes(r.mask, min(uint64(r.l.CPUMask.Size), maxCPUs/8))
	for i := range len(mask) / 8 {
		for set := word(mask, i*8); set != 0; set &= set - 1 {
			cpu := mem.Virt(i*64 + bits.TrailingZeros64(set))
			at := p + w.Pointer(r.offsets+cpu*8)
			for _, f := range fields {
				s[f.stat] += w.Uint(at, f.field)
			}
		}
	}
}

// private returns what netdev_priv does: where the driver's own structure begins.
func (r *statReader) private(w *kernel.Walk, dev mem.Virt) mem.Virt {
	if r.l.Priv.Known {
		return w.At(dev, r.l.Priv)
	}
	const align = 32 // NETDEV_ALIGN
	return dev + mem.Virt((r.l.Device.Size+align-1)&^(align-1))
}
