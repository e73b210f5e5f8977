package linux

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// flippedLive is a standing machine whose memory is read with bits turned over.
type flippedLive struct {
	source.Source
	flips map[mem.Phys][]flip // by page
}

func (f *flippedLive) ReadPhys(ctx context.Context, reads []mem.Read) error {
	if err := f.Source.ReadPhys(ctx, reads); err != nil {
		return err
	}
	for _, r := range reads {
		for page := r.Addr.Page(); page < r.Addr+mem.Phys(r.N); page += mem.PageSize {
			for _, fl := range f.flips[page] {
				if at := int64(page) + int64(fl.off) - int64(r.Addr); at >= 0 && at < int64(r.N) {
					r.Buf[at] ^= fl.mask
				}
			}
		}
	}
	return nil
}

// hostileWalks are walks that the recordings of TestHostile do not hold the pages of.
var hostileWalks = map[string]func(v *kernel.View) (int, error){
	"modules":    func(v *kernel.View) (int, error) { x, err := Modules(v); return len(x), err },
	"dmesg":      func(v *kernel.View) (int, error) { x, err := Dmesg(v); return len(x), err },
	"env":        func(v *kernel.View) (int, error) { x, err := Env(v, 0); return len(x), err },
	"namespaces": func(v *kernel.View) (int, error) { x, err := Namespaces(v); return len(x), err },
	"cgroups":    func(v *kernel.View) (int, error) { x, err := Cgroups(v); return len(x), err },
	"info":       func(v *kernel.View) (int, error) { x, err := ReadInfo(v); return len(x.Errors), err },
	"module types": func(v *kernel.View) (int, error) {
		t, err := v.Kernel.ModuleTypes(v, "virtio_ring")
		if (t == nil) == (err == nil) {
			panic("both or neither of types and an error")
		}
		return 0, err
	},
}

// TestHostileLive flips random bits in what these walks read of a real guest: each
// comes to an end, within its memory, and what cannot be read is told.
func TestHostileLive(t *testing.T) {
	for _, version := range []string{"5.10", "7.2"} {
		t.Run(version, func(t *testing.T) {
			g := bareGuest(t, version)
			k := attach(t, g)
			ask(t, g, "1")
			for name, walk := range hostileWalks {
				t.Run(name, func(t *testing.T) { flipUnder(t, k.Source(), name, walk) })
			}
		})
	}
}

func flipUnder(t *testing.T, src source.Source, name string, walk func(v *kernel.View) (int, error)) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	f := &flippedLive{Source: src}
	k, err := kernel.Attach(ctx, f, kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v := view(t, k, mem.Options{})
	if _, err := walk(v); errors.Is(err, kernel.ErrNoModuleTypes) {
		return // a kernel that keeps none: nothing is read
	} else if err != nil {
		t.Fatal(err)
	}
	var pages []mem.Phys
	for _, p := range v.Snapshot().Pages() {
		pages = append(pages, p.Addr)
	}
	rng := rand.New(rand.NewPCG(3, uint64(len(name))))
	told := 0
	for round := range 150 {
		f.flips = randomFlips(rng, pages, 4<<rng.IntN(9))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ctx, cancel := context.WithTimeout(context.Background(), hostileTime)
		v := k.View(ctx, mem.Options{Batch: round%2 == 0, Static: round%16 != 0})
		_, err := walk(v)
		cancel()
		runtime.ReadMemStats(&after)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("round %d: no end within %v", round, hostileTime)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 4*hostileHeap {
			t.Errorf("round %d: %d MiB allocated", round, grown>>20)
		}
		if err != nil || len(v.Findings()) > 0 {
			told++
		}
	}
	t.Logf("%d pages, %d of 150 rounds led to an error or a finding", len(pages), told)
}
