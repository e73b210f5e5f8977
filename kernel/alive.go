package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/umbravm/umbra/source"
)

// clockWait bounds the wait for a kernel's clock to move. An idle kernel that
// stopped its tick wakes at least that often.
const clockWait = 5 * time.Second

// lonelyWait is the same where there is one kernel only, which most likely runs: it
// is not worth more to say so without a doubt.
const lonelyWait = time.Second

// clockGlance is how long a busy kernel's clock takes to move, and more.
const clockGlance = 50 * time.Millisecond

// clockStep is how long to wait before a clock is read again.
const clockStep = 5 * time.Millisecond

// maxTicks is more than any clock advances between two readings.
const maxTicks = 1 << 20

// errStill is a kernel whose clock stands still.
var errStill = errors.New("its clock stands still")

// alive returns the running one of kernels that were proven without registers, or
// that several CPUs' registers lead to: after a crash one CPU runs the kernel for
// kdump, the others were halted in the one that crashed. The remains of an earlier
// boot can prove as much as a running kernel; but only one clock moves.
func (f *finder) alive(ks []*Kernel) (*Kernel, error) {
	if !f.src.Info().Live {
		if len(ks) == 1 {
			return ks[0], nil
		}
		return nil, fmt.Errorf("%d kernels lie in this memory and nothing tells which one ran: %s", len(ks), places(ks))
	}
	k, err := moving(f.ctx, ks, clockGlance)
	paused := errors.Is(err, errStill) && f.paused()
	wait := clockWait
	if len(ks) == 1 && !f.asked {
		wait = lonelyWait
	}
	if errors.Is(err, errStill) && !paused {
		k, err = moving(f.ctx, ks, wait)
	}
	switch {
	case err == nil && len(ks) > 1:
		k.attach.Doubts = append(k.attach.Doubts, fmt.Sprintf("memory holds %d kernels, of which this one's clock moves: %s", len(ks), places(ks)))
		return k, nil
	case err == nil:
		return k, nil
	case !errors.Is(err, errStill):
		return nil, err
	case len(ks) > 1:
		return nil, fmt.Errorf("%d kernels lie in this memory and no clock of theirs moved: %s", len(ks), places(ks))
	case f.asked:
		f.dead = append(f.dead, ks[0].root)
		return nil, fmt.Errorf("image at %v: no CPU runs on it and %w: it is what an earlier boot left", ks[0].image.base, err)
	}
	ks[0].attach.Doubts = append(ks[0].attach.Doubts, still(paused))
	return ks[0], nil
}

// paused tells whether the source is known to stand still: it is asked before a long
// wait, since the one who waits may have paused it.
func (f *finder) paused() bool {
	p, ok := f.src.(source.Pauser)
	if !ok {
		return false
	}
	paused, err := p.Paused(f.ctx)
	return err == nil && paused
}

// still says what is not known of a kernel whose clock did not move, of a machine
// whose CPUs cannot be asked.
func still(paused bool) string {
	if paused {
		return "the machine is paused: that this kernel is not what an earlier boot left cannot be shown"
	}
	return fmt.Sprintf("this kernel's clock did not move in %v: the machine idles or is paused, or this is what an earlier boot left", lonelyWait)
}

// moving returns the first kernel whose clock is seen to move within wait, or errStill.
func moving(ctx context.Context, ks []*Kernel, wait time.Duration) (*Kernel, error) {
	before := make([]uint64, len(ks))
	for end := time.Now().Add(wait); time.Now().Before(end); {
		for i, k := range ks {
			now, err := k.clock()
			if err != nil {
				continue
			}
			// Memory that is overwritten changes as well, but not by a few ticks.
			if before[i] != 0 && now-before[i]-1 < maxTicks {
				return k, nil
			}
			before[i] = now
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(clockStep):
		}
	}
	return nil, errStill
}

func places(ks []*Kernel) string {
	var s []string
	for _, k := range ks {
		s = append(s, k.image.base.String())
	}
	return strings.Join(s, ", ")
}

// clock returns the kernel's count of ticks (kernel/time/timer.c, jiffies_64).
func (k *Kernel) clock() (uint64, error) {
	a, err := k.Symbol("jiffies_64")
	if err != nil {
		return 0, err
	}
	var b [8]byte
	if err := k.image.Read(a, b[:]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}
