package replay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/sourcetest"
)

// machine is a machine of two runs of RAM, with registers, that moves on demand.
type machine struct {
	ram    map[mem.Phys][]byte
	layout mem.Layout
	regs   []source.Registers
}

func newMachine() *machine {
	r := rand.New(rand.NewPCG(5, 6))
	m := &machine{ram: map[mem.Phys][]byte{}, regs: []source.Registers{{CPU: 0, CR3: 0x1000, IDTBase: 7}}}
	for _, e := range []mem.Extent{{Start: 0, Size: 16 * mem.PageSize}, {Start: 0x100000, Size: 8 * mem.PageSize}} {
		b := make([]byte, e.Size)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		m.ram[e.Start] = b
		m.layout = append(m.layout, e)
	}
	clear(m.ram[0][3*mem.PageSize : 4*mem.PageSize])
	return m
}

func (m *machine) Info() source.Info {
	return source.Info{Kind: "test", Name: "m1", Layout: m.layout, Live: true, Local: true, CPUs: 1}
}
func (m *machine) Close() error { return nil }
func (m *machine) Registers(context.Context) ([]source.Registers, error) {
	return m.regs, nil
}

func (m *machine) ReadPhys(ctx context.Context, reads []mem.Read) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range reads {
		r := &reads[i]
		r.N, r.Err = 0, nil
		if e, ok := m.layout.Find(r.Addr); ok {
			r.N = copy(r.Buf, m.ram[e.Start][r.Addr-e.Start:])
		}
		if r.N < len(r.Buf) {
			r.Err = &mem.Fault{Layer: mem.LayerPhysical, Addr: uint64(r.Addr) + uint64(r.N), Err: mem.ErrNotRAM}
		}
	}
	return nil
}

// recorded writes a recording of all of m's memory to a file and returns its path.
func recorded(t *testing.T, m *machine) string {
	t.Helper()
	r := Record(m, []string{"ps"})
	if _, err := r.Registers(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, e := range m.layout {
		if _, err := mem.Gather(context.Background(), r, e.Start, make([]byte, e.Size)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "m1.umbra")
	write(t, r, path)
	return path
}

func write(t *testing.T, r *Recorder, path string) {
	t.Helper()
	b, err := r.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := b.Encode(&buf); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	m := newMachine()
	path := recorded(t, m)
	open := func(t *testing.T) (source.Source, sourcetest.Truth) {
		s, err := Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		return s, truth(m)
	}
	t.Run("replay", func(t *testing.T) { sourcetest.Test(t, open) })
}

func truth(m *machine) sourcetest.Truth {
	tr := sourcetest.Truth{Layout: m.layout, Still: true}
	for start, data := range m.ram {
		tr.Known = append(tr.Known, sourcetest.Chunk{Addr: start, Data: data})
	}
	return tr
}

// TestRecord keeps what was read and nothing else, and says so of the rest.
func TestRecord(t *testing.T) {
	m := newMachine()
	r := Record(m, []string{"ps", "--tree"})
	ctx := context.Background()
	if _, err := mem.Gather(ctx, r, 0x1ff8, make([]byte, 16)); err != nil { // pages 1 and 2
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x")
	write(t, r, path)
	s, err := Open(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Meta().Command; !slices.Equal(got, []string{"ps", "--tree"}) {
		t.Errorf("command %q", got)
	}
	buf := make([]byte, 2*mem.PageSize)
	if n, err := mem.Gather(ctx, s, 0x1000, buf); err != nil || !bytes.Equal(buf, m.ram[0][0x1000:0x3000]) {
		t.Errorf("pages read: %d bytes, %v", n, err)
	}
	if n, err := mem.Gather(ctx, s, 0x2000, buf); n != mem.PageSize || !errors.Is(err, mem.ErrNotRecorded) {
		t.Errorf("a page that was not read: %d bytes, %v", n, err)
	}
	if _, err := mem.Gather(ctx, s, 0x50000, buf); !errors.Is(err, mem.ErrNotRAM) {
		t.Errorf("no RAM: %v", err)
	}
	if _, err := s.Registers(ctx); err == nil {
		t.Error("registers that nobody read were recorded")
	}
}

// TestRecordAgain keeps the page an answer was computed from: a part read later,
// to see whether memory moved, does not replace it; the whole page does.
func TestRecordAgain(t *testing.T) {
	m := newMachine()
	r := Record(m, nil)
	ctx := context.Background()
	page := make([]byte, mem.PageSize)
	mem.Gather(ctx, r, 0, page)
	m.ram[0][0] ^= 0xff
	mem.Gather(ctx, r, 0, page[:8])
	if b, _ := r.Bundle(); b.Pages[0].Data[0] == m.ram[0][0] {
		t.Error("a part read again replaced the page")
	}
	mem.Gather(ctx, r, 0, page)
	if b, _ := r.Bundle(); b.Pages[0].Data[0] != m.ram[0][0] {
		t.Error("the page read again was not kept")
	}
}

// TestBadMeta opens bundles whose description lies.
func TestBadMeta(t *testing.T) {
	for name, meta := range map[string]any{
		"overlap": Meta{Layout: mem.Layout{{Start: 0, Size: 0x2000}, {Start: 0x1000, Size: 0x1000}}},
		"wrap":    Meta{Layout: mem.Layout{{Start: 0x1000, Size: ^uint64(0)}}},
		"text":    "hello",
	} {
		b, err := json.Marshal(meta)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := New(&mem.Bundle{Meta: b}); !errors.Is(err, mem.ErrBundle) || s != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

// TestData looks for what was recorded in a machine that is said to be as large as
// can be: it must not look at every page of that.
func TestData(t *testing.T) {
	meta, err := json.Marshal(Meta{Layout: mem.Layout{{Start: 0x1000, Size: 1 << 62}}})
	if err != nil {
		t.Fatal(err)
	}
	pages := map[mem.Phys]mem.BundlePage{}
	for _, a := range []mem.Phys{0, 0x2000, 0x3000, 0x9000, 1 << 61, 1 << 63} {
		pages[a] = mem.BundlePage{Data: make([]byte, mem.PageSize)}
	}
	s, err := New(&mem.Bundle{Meta: meta, Pages: pages})
	if err != nil {
		t.Fatal(err)
	}
	var got mem.Layout
	for at := mem.Phys(0); ; {
		e, ok := s.Data(at)
		if !ok {
			break
		}
		got, at = append(got, e), e.End()
	}
	want := mem.Layout{{Start: 0x2000, Size: 0x2000}, {Start: 0x9000, Size: 0x1000}, {Start: 1 << 61, Size: 0x1000}}
	if !slices.Equal(got, want) {
		t.Errorf("recorded: %v, want %v", got, want)
	}
}
