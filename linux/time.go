package linux

import (
	"fmt"
	"time"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// clockLayout is include/linux/timekeeper_internal.h.
type clockLayout struct {
	InData     btf.Field `btf:"tk_data.timekeeper ?"` // a named type since 6.13
	Seq        btf.Field `btf:"seqcount_raw_spinlock ?"`
	OffsReal   btf.Field `btf:"timekeeper.offs_real"`
	OffsBoot   btf.Field `btf:"timekeeper.offs_boot"`
	Base       btf.Field `btf:"timekeeper.tkr_mono.base"`
	Nsec       btf.Field `btf:"timekeeper.tkr_mono.xtime_nsec"`
	Shift      btf.Field `btf:"timekeeper.tkr_mono.shift"`
	Clock      btf.Field `btf:"timekeeper.tkr_mono.clock"`
	ClockMult  btf.Field `btf:"clocksource.mult"`
	ClockShift btf.Field `btf:"clocksource.shift"`
}

// Clock is a machine's time as its kernel last noted it, at its last tick.
type Clock struct {
	Boot   time.Time     // when it booted, by its own clock
	Uptime time.Duration // since then, sleep included
}

// ReadClock reads the kernel's timekeeper (kernel/time/timekeeping.c).
func ReadClock(w *kernel.Walk) (Clock, error) {
	k := w.View().Kernel
	l, err := kernel.Layout[clockLayout](k)
	if err != nil {
		return Clock{}, err
	}
	var c Clock
	err = w.Try(func() {
		tk := timekeeper(w, l)
		if src := w.Ptr(tk, l.Clock); w.OK() && (w.Uint(src, l.ClockMult) == 0 || w.Uint(src, l.ClockShift) > 64) {
			w.Failf("timekeeper at %v has no clock source", tk)
		}
		shift := w.Uint(tk, l.Shift)
		if shift > 63 {
			w.Failf("timekeeper at %v: shift %d: %w", tk, shift, kernel.ErrTooLong)
		}
		real, boot := w.Int(tk, l.OffsReal), w.Int(tk, l.OffsBoot)
		c.Boot = time.Unix(0, real-boot).UTC()
		c.Uptime = time.Duration(w.Int(tk, l.Base)) + time.Duration(w.Uint(tk, l.Nsec)>>shift) + time.Duration(boot)
	})
	return c, err
}

// BootTime returns when the machine booted, by its own clock.
func BootTime(w *kernel.Walk) (time.Time, error) {
	c, err := ReadClock(w)
	return c.Boot, err
}

// timekeeper returns the address of the core timekeeper.
func timekeeper(w *kernel.Walk, l *clockLayout) mem.Virt {
	k := w.View().Kernel
	for _, name := range []string{"timekeeper_data", "tk_core"} { // an array of one per clock since 6.17
		if a, err := k.Symbol(name); err == nil {
			if l.InData.Known {
				return a + mem.Virt(l.InData.Offset)
			}
			// An unnamed struct { seqcount_raw_spinlock_t seq; struct timekeeper timekeeper; },
			// the latter aligned to 8 bytes. On rt kernels seq holds its lock's address too.
			return a + max(8, mem.Virt(l.Seq.Size+7)&^7)
		}
	}
	w.Fail(errNoTimekeeper)
	return 0
}

var errNoTimekeeper = fmt.Errorf("timekeeper: %w", kernel.ErrNoSymbol)
