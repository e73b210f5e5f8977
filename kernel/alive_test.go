package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/replay"
)

// machine is a recorded machine that is made to look alive.
type machine struct {
	*replay.Source
	regs  []source.Registers
	pages map[mem.Phys][]byte // in place of, or besides, what was recorded
	read  func()              // before each read
	still bool                // it is paused
}

func (m *machine) Paused(context.Context) (bool, error) { return m.still, nil }

func (m *machine) Pause(context.Context) (func() (time.Duration, error), error) {
	return nil, errors.New("not in this test")
}

func record(t *testing.T, version string) *machine {
	t.Helper()
	src, err := replay.Open(context.Background(), "../linux/testdata/"+version+".umbra")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{Source: src, pages: map[mem.Phys][]byte{}, read: func() {}}
	if m.regs, err = src.Registers(context.Background()); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) Info() source.Info {
	info := m.Source.Info()
	info.Live = true
	return info
}

func (m *machine) Registers(context.Context) ([]source.Registers, error) {
	if m.regs == nil {
		return nil, errors.New("nobody tells the registers")
	}
	return m.regs, nil
}

func (m *machine) Data(from mem.Phys) (mem.Extent, bool) {
	e, ok := m.Source.Data(from)
	for a := range m.pages {
		if a >= from && (!ok || a < e.Start) {
			e, ok = mem.Extent{Start: a, Size: mem.PageSize}, true
		}
	}
	return e, ok
}

func (m *machine) ReadPhys(ctx context.Context, reads []mem.Read) error {
	m.read()
	if err := m.Source.ReadPhys(ctx, reads); err != nil {
		return err
	}
	for i := range reads {
		r := &reads[i]
		for at := 0; at < len(r.Buf); {
			a := r.Addr + mem.Phys(at)
			n := min(len(r.Buf)-at, int(a.Page()+mem.PageSize-a))
			if pg := m.pages[a.Page()]; pg != nil {
				copy(r.Buf[at:at+n], pg[a-a.Page():])
				if r.N >= at {
					r.N, r.Err = max(r.N, at+n), nil
				}
			} else if r.N < at+n && r.Err == nil {
				_, r.Err = mem.Gather(ctx, m.Source, a, make([]byte, n))
				break
			}
			at += n
		}
	}
	return nil
}

// page returns a page that the test may write to, with what was recorded of it.
func (m *machine) page(a mem.Phys) []byte {
	if m.pages[a.Page()] == nil {
		pg := make([]byte, mem.PageSize)
		_, _ = mem.Gather(context.Background(), m.Source, a.Page(), pg)
		m.pages[a.Page()] = pg
	}
	return m.pages[a.Page()]
}

// leaveNote puts k's note for kdump where nothing was recorded.
func (m *machine) leaveNote(t *testing.T, k *Kernel) {
	t.Helper()
	pgd, err := k.Symbol("init_top_pgt")
	if err != nil {
		t.Fatal(err)
	}
	l5 := 0
	if k.levels == 5 {
		l5 = 1
	}
	text := fmt.Sprintf("OSRELEASE=x\nSYMBOL(swapper_pg_dir)=%x\nNUMBER(phys_base)=%d\nNUMBER(pgtable_l5_enabled)=%d\n",
		uint64(pgd), int64(uint64(imageLow)-k.image.delta), l5)
	pg := m.page(0x5000)
	binary.LittleEndian.PutUint32(pg, uint32(len("VMCOREINFO")+1))
	binary.LittleEndian.PutUint32(pg[4:], uint32(len(text)))
	copy(pg[12:], "VMCOREINFO\x00")
	copy(pg[24:], text)
}

// tick makes k's clock move with every read.
func (m *machine) tick(t *testing.T, k *Kernel) {
	t.Helper()
	a, err := k.Symbol("jiffies_64")
	if err != nil {
		t.Fatal(err)
	}
	p := k.image.phys(a)
	word := m.page(p)[p-p.Page():]
	m.read = func() { binary.LittleEndian.PutUint64(word, binary.LittleEndian.Uint64(word)+1) }
	binary.LittleEndian.PutUint64(word, 0xffff_1234)
}

// firmware is what the registers of a CPU say while its firmware runs.
var firmware = []source.Registers{{CR0: 0x10}}

// TestRemains looks for kernels that no CPU is seen to run.
func TestRemains(t *testing.T) {
	for _, c := range []struct {
		name    string
		regs    []source.Registers
		ticks   bool
		paused  bool
		err     bool
		finding string
	}{
		{"firmware runs, the clock stands", firmware, false, false, true, ""},
		{"firmware runs just now, the clock moves", firmware, true, false, false, ""},
		{"no registers, the clock stands", nil, false, false, false, "clock did not move"},
		{"no registers, paused", nil, false, true, false, "is paused: "},
		{"firmware runs, paused", firmware, false, true, true, ""},
		{"no registers, the clock moves", nil, true, false, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := record(t, "5.10")
			k, err := Attach(context.Background(), m, Options{})
			if err != nil {
				t.Fatal(err)
			}
			m.leaveNote(t, k)
			if c.ticks {
				m.tick(t, k)
			}
			m.regs, m.still = c.regs, c.paused
			k, err = Attach(context.Background(), m, Options{})
			if c.err {
				if !errors.Is(err, ErrNoKernel) || !errors.Is(err, errStill) || k != nil {
					t.Errorf("%v, %v", k, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if k.Attached().Method != ByVMCoreInfo {
				t.Errorf("found by %s", k.Attached().Method)
			}
			found := fmt.Sprint(k.Attached().Doubts)
			if c.finding == "" && len(k.Attached().Doubts) > 0 || !strings.Contains(found, c.finding) {
				t.Errorf("findings %v", found)
			}
		})
	}
}

// TestCheckDoubt checks a kernel while no CPU is in it.
func TestCheckDoubt(t *testing.T) {
	for _, ticks := range []bool{false, true} {
		t.Run(fmt.Sprintf("clock moves: %v", ticks), func(t *testing.T) {
			t.Parallel()
			m := record(t, "7.2")
			k, err := Attach(context.Background(), m, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Check(context.Background()); err != nil {
				t.Fatalf("its own CPU runs it: %v", err)
			}
			if ticks {
				m.tick(t, k)
			}
			m.regs = firmware
			if err := k.Check(context.Background()); ticks != (err == nil) || err != nil && !errors.Is(err, ErrRebooted) {
				t.Errorf("a CPU in its firmware: %v", err)
			}
		})
	}
}

// TestTypesSwapped parses other types than were hashed, as a guest would that wants
// to fill another kernel's place in the cache.
func TestTypesSwapped(t *testing.T) {
	const path = "task_struct.comm"
	cache, err := OpenCache(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := record(t, "7.2")
	k, err := Attach(context.Background(), m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	types, err := k.loadTypes(Options{Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	at := k.image.phys(k.types.start + mem.Virt(k.types.size) - 5) // in the strings
	m.page(at)[at-at.Page()] ^= 1
	if f, err := types.Field(path); !errors.Is(err, errTypesChanged) || f.Known {
		t.Errorf("field %v of types that changed since they were hashed, %v", f, err)
	}
	if err := types.memo.save(); err != nil {
		t.Fatal(err)
	}
	if _, known := cache.open(types.digest).field(path); known {
		t.Error("what the guest showed second is kept under what it showed first")
	}
}
