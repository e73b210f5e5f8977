package qemu

import (
	"testing"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/sourcetest"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// rig is a kind of machine the tests run on.
type rig struct {
	name string
	args func(t testing.TB) []string
	fill []mem.Phys
	ram  []mem.Extent // main RAM, as the machine's documentation has it, without ROM holes
	way  string       // how it is to be read
}

func fixed(args ...string) func(testing.TB) []string {
	return func(testing.TB) []string { return args }
}

var rigs = []rig{
	{
		name: "pc file 512M", way: "shared memory-backend-file",
		args: func(t testing.TB) []string {
			return []string{"-machine", "pc,memory-backend=m", "-m", "512",
				"-object", "memory-backend-file,id=m,size=512M,share=on,mem-path=" + ramFile(t)}
		},
		fill: []mem.Phys{0x1000, mib, 512*mib - 8192},
		ram:  []mem.Extent{{Start: 0, Size: 512 * mib}},
	},
	{
		name: "pc stock 4G", way: "process memory",
		args: fixed("-machine", "pc", "-m", "4G"),
		fill: []mem.Phys{mib, 3*gib - 8192, 4 * gib, 5*gib - 8192},
		ram:  []mem.Extent{{Start: 0, Size: 3 * gib}, {Start: 4 * gib, Size: gib}},
	},
	{
		name: "q35 memfd 3G", way: "shared memfd",
		args: fixed("-machine", "q35,memory-backend=m", "-m", "3G", "-object", "memory-backend-memfd,id=m,size=3G,share=on"),
		fill: []mem.Phys{mib, 2*gib - 8192, 4 * gib, 5*gib - 8192},
		ram:  []mem.Extent{{Start: 0, Size: 2 * gib}, {Start: 4 * gib, Size: gib}},
	},
	{
		name: "q35 private file 512M", way: "private memory-backend-file",
		args: func(t testing.TB) []string {
			return []string{"-machine", "q35,memory-backend=m", "-m", "512",
				"-object", "memory-backend-file,id=m,size=512M,share=off,mem-path=" + ramFile(t)}
		},
		fill: []mem.Phys{mib, 512*mib - 8192},
		ram:  []mem.Extent{{Start: 0, Size: 512 * mib}},
	},
	{
		name: "q35 two NUMA nodes", way: "shared memfd and process memory",
		args: fixed("-machine", "q35", "-m", "512", "-smp", "2",
			"-object", "memory-backend-memfd,id=a,size=256M,share=on", "-object", "memory-backend-ram,id=b,size=256M",
			"-numa", "node,memdev=a", "-numa", "node,memdev=b"),
		fill: []mem.Phys{mib, 256*mib - 3000, 512*mib - 8192}, // the second lies across both
		ram:  []mem.Extent{{Start: 0, Size: 512 * mib}},
	},
	{
		name: "pc shared anonymous 256M", way: "shared anonymous memory",
		args: fixed("-machine", "pc,memory-backend=m", "-m", "256", "-object", "memory-backend-ram,id=m,size=256M,share=on"),
		fill: []mem.Phys{mib, 256*mib - 8192},
		ram:  []mem.Extent{{Start: 0, Size: 256 * mib}},
	},
	{
		name: "microvm stock 5G", way: "process memory",
		args: fixed("-machine", "microvm", "-m", "5G"),
		fill: []mem.Phys{mib, 3*gib - 8192, 4 * gib, 6*gib - 8192},
		ram:  []mem.Extent{{Start: 0, Size: 3 * gib}, {Start: 4 * gib, Size: 2 * gib}},
	},
}

func TestConformance(t *testing.T) {
	for _, r := range rigs {
		t.Run(r.name, func(t *testing.T) {
			v := startVM(t, vmOptions{args: r.args(t), fill: r.fill})
			sourcetest.Test(t, func(t *testing.T) (source.Source, sourcetest.Truth) {
				s := v.open(t)
				checkRAM(t, s.Info().Layout, r.ram)
				if got := s.Info().Detail; got != r.way+", QMP" {
					t.Errorf("detail %q, want %q", got, r.way+", QMP")
				}
				return s, sourcetest.Truth{Known: v.known, Still: true}
			})
		})
	}
}

// checkRAM compares a layout with main RAM: the same from 1 MiB on; below, ROM may
// take some away.
func checkRAM(t *testing.T, l mem.Layout, ram []mem.Extent) {
	t.Helper()
	cut := func(es []mem.Extent) (high []mem.Extent) {
		for _, e := range es {
			if e.End() <= mib {
				continue
			}
			if e.Start < mib {
				e = mem.Extent{Start: mib, Size: uint64(e.End() - mib)}
			}
			high = append(high, e)
		}
		return high
	}
	got, want := cut(l), cut(ram)
	if len(got) != len(want) {
		t.Fatalf("layout %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("layout %v, want %v", got, want)
		}
	}
	if l[0].Start != 0 || l[0].Size < 640*1024 {
		t.Errorf("low memory is %v", l[0])
	}
}
