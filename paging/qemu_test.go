package paging

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/internal/qmp"
	"github.com/umbravm/umbra/mem"
)

func TestMain(m *testing.M) { lab.Main(m) }

// ramFile is a guest's RAM below the PCI hole.
type ramFile struct{ *os.File }

func (f ramFile) ReadPhys(_ context.Context, reads []mem.Read) error {
	for i := range reads {
		r := &reads[i]
		if r.N, r.Err = f.ReadAt(r.Buf, int64(r.Addr)); r.N < len(r.Buf) {
			r.Err = &mem.Fault{Layer: mem.LayerPhysical, Addr: uint64(r.Addr) + uint64(r.N), Err: mem.ErrNotRAM}
		}
	}
	return nil
}

// TestAgainstQEMU compares every page of a paused machine's address space with what
// QEMU's own page walker says of it, with four levels and with five.
func TestAgainstQEMU(t *testing.T) {
	for levels, cpu := range map[int]string{4: "max,la57=off", 5: "max"} {
		t.Run(fmt.Sprint(levels), func(t *testing.T) {
			g := lab.Shared(t, lab.Config{Kernel: "6.1", MemMB: 256, QMP: true, CPUModel: cpu, Append: []string{"umbra.state=0"}})
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			if err := g.Pause(ctx); err != nil {
				t.Fatal(err)
			}
			defer g.Resume(ctx)
			c, err := qmp.Dial(ctx, g.QMPPath())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			f, err := os.Open(g.RAMPath())
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			sp := NewCached(mem.NewSnapshot(ctx, ramFile{f}, mem.Options{Static: true}), rootOf(t, ctx, c, levels), levels)
			compareTLB(t, sp, hmp(t, ctx, c, "info tlb"))
		})
	}
}

func hmp(t *testing.T, ctx context.Context, c *qmp.Client, line string) string {
	t.Helper()
	text, err := c.HMP(ctx, line)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// rootOf returns the first CPU's top table.
func rootOf(t *testing.T, ctx context.Context, c *qmp.Client, levels int) mem.Phys {
	t.Helper()
	text := hmp(t, ctx, c, "info registers")
	var cr3, cr4 uint64
	for field := range strings.FieldsSeq(text) {
		fmt.Sscanf(field, "CR3=%x", &cr3)
		fmt.Sscanf(field, "CR4=%x", &cr4)
	}
	if cr3 == 0 || (cr4&CR4LA57 != 0) != (levels == 5) {
		t.Fatalf("CR3 %#x, CR4 %#x, for %d levels", cr3, cr4, levels)
	}
	return mem.Phys(cr3)
}

// compareTLB reads QEMU's lines of address, physical address and flags, one for each
// page of whatever size.
func compareTLB(t *testing.T, sp *Space, text string) {
	t.Helper()
	lines, bytes, bad := 0, uint64(0), 0
	for line := range strings.Lines(text) {
		var a mem.Virt
		var want mem.Phys
		if _, err := fmt.Sscanf(line, "%x: %x", (*uint64)(&a), (*uint64)(&want)); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		p, size, err := sp.Walk(a)
		lines, bytes = lines+1, bytes+size
		if err != nil || p != want {
			if bad++; bad < 10 {
				t.Errorf("%v: %v, %v, QEMU says %s", a, p, err, line)
			}
		}
	}
	if lines < 1000 {
		t.Errorf("QEMU told of %d pages", lines)
	}
	var mapped uint64
	err := sp.Mappings(0, ^mem.Virt(0), func(m Mapping) bool { mapped += m.Size; return true })
	if err != nil || mapped != bytes {
		t.Errorf("%#x bytes are mapped, QEMU says %#x in %d pages; %v", mapped, bytes, lines, err)
	}
	t.Logf("%d pages, %d MB", lines, mapped>>20)
}

func TestKnow(t *testing.T) {
	b := newBuilder(4, 4)
	sp := b.space(true)
	sp.Know([]Mapping{{Virt: 0xffff_ffff_8100_0000, Phys: 0x10_0000, Size: 2 << 20}})
	if p, err := sp.Translate(0xffff_ffff_811f_ffff); p != 0x2f_ffff || err != nil {
		t.Errorf("%v, %v", p, err)
	}
	for _, a := range []mem.Virt{0xffff_ffff_8120_0000, 0xffff_ffff_80ff_ffff} {
		if p, err := sp.Translate(a); err == nil {
			t.Errorf("%v leads to %v", a, p)
		}
	}
	if tables := sp.Tables(); len(tables) != 1 || tables[0] != sp.Root() {
		t.Errorf("tables walked: %v", tables)
	}
}

func BenchmarkTranslate(b *testing.B) {
	const a = mem.Virt(0xffff_ffff_8123_4000)
	for _, levels := range []int{4, 5} {
		bl := newBuilder(16, levels)
		bl.place(a, 1, 0xabc_d000|flags)
		for name, cached := range map[string]bool{"walk": false, "cached": true} {
			sp := bl.space(cached)
			b.Run(fmt.Sprintf("%s/%d", name, levels), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := sp.Translate(a); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
