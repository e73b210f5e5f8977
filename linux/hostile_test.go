package linux

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sort"
	"testing"
	"time"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/replay"
)

// flipped is a recording in which bits of some pages are turned over.
type flipped struct {
	*replay.Source
	flips map[mem.Phys][]flip // by page
}

type flip struct {
	off  int
	mask byte
}

func (f *flipped) ReadPhys(ctx context.Context, reads []mem.Read) error {
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

// Bounds of one command on hostile memory: far more than it takes on any other.
const (
	hostileTime = 20 * time.Second
	hostileHeap = 256 << 20
)

// hostileRounds is how many damaged memories TestHostile lists from, for each recording.
const hostileRounds = 1500

// TestHostile lists everything from memory in which random bits are flipped: no
// panic, no hang, no flood of memory, and what fails says where.
func TestHostile(t *testing.T) {
	for _, version := range recordedKernels {
		t.Run(version, func(t *testing.T) {
			src := openRecorded(t, version)
			k := attachTo(t, src)
			pages := touched(t, src, k)
			f := &flipped{Source: src}
			// The kernel was attached to before its memory was damaged, as by an
			// intruder who comes later.
			hostile := attachTo(t, f)
			rng := rand.New(rand.NewPCG(1, uint64(len(pages))))
			told := 0
			for round := range hostileRounds {
				f.flips = randomFlips(rng, pages, 1<<rng.IntN(12))
				if listAll(t, hostile, round) {
					told++
				}
			}
			if told < hostileRounds/10 {
				t.Errorf("only %d of %d damaged memories led to an error or a finding", told, hostileRounds)
			}
		})
	}
}

// TestHostileAttach attaches to memory in which bits of the kernel's own tables are
// flipped.
func TestHostileAttach(t *testing.T) {
	for _, version := range recordedKernels {
		t.Run(version, func(t *testing.T) {
			src := openRecorded(t, version)
			all := recordedPages(src)
			f := &flipped{Source: src}
			rng := rand.New(rand.NewPCG(2, uint64(len(all))))
			failed := 0
			for round := range 150 {
				f.flips = randomFlips(rng, all, 1<<rng.IntN(10))
				ctx, cancel := context.WithTimeout(context.Background(), hostileTime)
				k, err := kernel.Attach(ctx, f, kernel.Options{})
				switch {
				case errors.Is(err, context.DeadlineExceeded):
					t.Fatalf("round %d: no end within %v", round, hostileTime)
				case err != nil:
					failed++
					if err.Error() == "" || k != nil {
						t.Errorf("round %d: error %q with kernel %v", round, err, k)
					}
				default:
					listAll(t, k, round)
				}
				cancel()
			}
			t.Logf("%d of 150 damaged kernels were refused", failed)
		})
	}
}

// touched returns the pages that listing reads, without the tables that only
// attaching reads.
func touched(t *testing.T, src source.Source, k *kernel.Kernel) []mem.Phys {
	t.Helper()
	seen := map[mem.Phys]bool{}
	for name, list := range listings {
		v := view(t, k, mem.Options{})
		if _, err := list(v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, p := range v.Snapshot().Pages() {
			seen[p.Addr] = true
		}
	}
	var out []mem.Phys
	for p := range seen {
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}

// recordedPages returns the addresses of all pages of a recording.
func recordedPages(src *replay.Source) (out []mem.Phys) {
	for at := mem.Phys(0); ; {
		run, ok := src.Data(at)
		if !ok {
			return out
		}
		for p := run.Start; p < run.End(); p += mem.PageSize {
			out = append(out, p)
		}
		at = run.End()
	}
}

func randomFlips(rng *rand.Rand, pages []mem.Phys, n int) map[mem.Phys][]flip {
	flips := make(map[mem.Phys][]flip)
	for range n {
		p := pages[rng.IntN(len(pages))]
		flips[p] = append(flips[p], flip{rng.IntN(mem.PageSize), 1 << rng.IntN(8)})
	}
	return flips
}

// listAll runs every listing and tells whether any of them reported something.
func listAll(t *testing.T, k *kernel.Kernel, round int) (told bool) {
	t.Helper()
	for name, list := range listings {
		ctx, cancel := context.WithTimeout(context.Background(), hostileTime)
		v := k.View(ctx, mem.Options{})
		_, err := list(v)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			t.Fatalf("round %d: %s did not end within %v", round, name, hostileTime)
		case errors.Is(err, mem.ErrPending):
			t.Fatalf("round %d: %s: %v", round, name, err)
		case err != nil && err.Error() == "":
			t.Errorf("round %d: %s failed without saying why", round, name)
		}
		for _, f := range v.Findings() {
			if f.Object == "" || f.What == "" {
				t.Errorf("round %d: %s: finding %+v names nothing", round, name, f)
			}
		}
		told = told || err != nil || len(v.Findings()) > 0
	}
	var m runtime.MemStats
	if runtime.ReadMemStats(&m); m.HeapInuse > hostileHeap {
		t.Fatalf("round %d: %d MB of heap", round, m.HeapInuse>>20)
	}
	return told
}

// TestTampered changes a bit of the kernel's own tables after they were attached to.
func TestTampered(t *testing.T) {
	for object, symbol := range map[string]string{"BTF": "__start_BTF", "kallsyms": ""} {
		t.Run(object, func(t *testing.T) {
			f := &flipped{Source: openRecorded(t, "5.10")}
			k := attachTo(t, f)
			if found, err := k.Tampered(); err != nil || len(found) > 0 {
				t.Fatalf("nothing changed yet: %v, %v", found, err)
			}
			a := k.Symbols().Locations().Names
			if symbol != "" {
				var err error
				if a, err = k.Symbol(symbol); err != nil {
					t.Fatal(err)
				}
			}
			run := k.Image()[0]
			at := run.Phys + mem.Phys(a+64-run.Virt)
			f.flips = map[mem.Phys][]flip{at.Page(): {{int(at - at.Page()), 0x10}}}
			found, err := k.Tampered()
			if err != nil || len(found) != 1 || found[0].Object != object {
				t.Errorf("a bit of %s flipped: %v, %v", object, found, err)
			}
		})
	}
}
