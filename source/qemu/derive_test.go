package qemu

import (
	"errors"
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/qmp"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/sourcetest"
)

// TestDeriveAgreesWithQEMU compares the layout worked out without QMP with the one
// QEMU tells, for machines around the sizes at which the rules change.
func TestDeriveAgreesWithQEMU(t *testing.T) {
	for _, tc := range []struct{ machine, memory, opts string }{
		{"pc", "256", ""}, {"pc", "3G", ""}, {"pc", "3583", ""}, {"pc", "3584", ""}, {"pc", "6G", ""},
		{"pc", "3G", ",max-ram-below-4g=2G"},
		{"q35", "2G", ""}, {"q35", "2815", ""}, {"q35", "2816", ""}, {"q35", "5G", ""},
		{"q35", "3G", ",max-ram-below-4g=1G"},
		{"pc-i440fx-2.9", "4G", ""}, {"pc-q35-6.0", "4G", ""},
		{"microvm", "512", ""},
	} {
		t.Run(tc.machine+" "+tc.memory+strings.ReplaceAll(tc.opts, ",", " "), func(t *testing.T) {
			v := startVM(t, vmOptions{args: []string{"-machine", tc.machine + tc.opts, "-m", tc.memory}})
			s := v.open(t)
			o, err := newOpener(s.p)
			if err != nil {
				t.Fatal(err)
			}
			defer o.close()
			blocks, err := s.cfg.derive(o)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range blocks {
				r := s.find(b.Start)
				if r == nil || r.off+uint64(b.Start-r.Start) != b.hva {
					t.Errorf("RAM at %v is at %#x by our rules, and not by QEMU's", b.Start, b.hva)
				}
				if last := s.find(b.End() - 1); last != r {
					t.Errorf("RAM at %v, %#x bytes, is not one region for QEMU", b.Start, b.Size)
				}
			}
			asked := s.Info().Layout
			if end := asked[len(asked)-1].End(); blocks[len(blocks)-1].End() != end {
				t.Errorf("RAM ends at %v by our rules, at %v by QEMU's", blocks[len(blocks)-1].End(), end)
			}
		})
	}
}

// TestDeriveRefuses: what cannot be proved is an error.
func TestDeriveRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		args       []string
	}{
		{"no tables", "no ACPI tables", []string{"-machine", "microvm", "-m", "5G"}},
		{"no ACPI", "no ACPI tables", []string{"-machine", "pc,acpi=off", "-m", "5G"}},
		{"unknown type", "machine type \"isapc\"", []string{"-machine", "isapc"}},
		{"same backends", "looks the same as", []string{"-m", "512",
			"-object", "memory-backend-memfd,id=a,size=256M", "-object", "memory-backend-memfd,id=b,size=256M",
			"-numa", "node,memdev=a", "-numa", "node,memdev=b"}},
		{"a DIMM", "pc-dimm", []string{"-m", "256,slots=1,maxmem=1G",
			"-object", "memory-backend-ram,id=d,size=256M", "-device", "pc-dimm,memdev=d"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := startVM(t, vmOptions{noQMP: true, args: tc.args})
			s, err := Open(t.Context(), v.name)
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want ErrLayout saying %q", err, tc.want)
			}
		})
	}
}

// TestConformanceWithoutQMP runs the suite where another client holds the QMP
// socket, as libvirt does, and where there is none.
func TestConformanceWithoutQMP(t *testing.T) {
	for _, r := range rigs[:4] {
		t.Run("held "+r.name, func(t *testing.T) {
			var fill []mem.Phys // where firmware does not write
			for _, e := range r.ram {
				fill = append(fill, e.Start+16*mib)
			}
			v := startVM(t, vmOptions{args: r.args(t), fill: fill, running: true})
			c, err := qmp.Dial(t.Context(), v.socket)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			sourcetest.Test(t, func(t *testing.T) (source.Source, sourcetest.Truth) {
				s := v.open(t)
				checkWithoutROM(t, s.Info().Layout, r.ram)
				if d := s.Info().Detail; !strings.HasPrefix(d, r.way) || !strings.Contains(d, "another client holds") {
					t.Errorf("detail %q", d)
				}
				return s, sourcetest.Truth{Known: v.known}
			})
		})
	}
	t.Run("none", func(t *testing.T) {
		v := startVM(t, vmOptions{noQMP: true, running: true, fill: []mem.Phys{16 * mib}})
		sourcetest.Test(t, func(t *testing.T) (source.Source, sourcetest.Truth) {
			return v.open(t), sourcetest.Truth{Known: v.known}
		})
	})
}

// checkWithoutROM compares a derived layout, which leaves the ROM area out.
func checkWithoutROM(t *testing.T, got mem.Layout, ram []mem.Extent) {
	t.Helper()
	want := append([]mem.Extent{{Start: 0, Size: romStart}, {Start: romEnd, Size: ram[0].Size - romEnd}}, ram[1:]...)
	if len(got) != len(want) {
		t.Fatalf("layout %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("layout %v, want %v", got, want)
		}
	}
}

func TestWindowsProve(t *testing.T) {
	pc := windows{{0xa0000, 0xbffff, false}, {3 << 30, 0xfebfffff, false}, {6 << 30, 8<<30 - 1, true}}
	early := windows{{0xa0000, 0xbffff, false}, {5 << 30, 40<<30 - 1, true}}
	for _, tc := range []struct {
		name      string
		ws        windows
		low, high uint64
		slots, ok bool
	}{
		{"right", pc, 3 << 30, 2 << 30, false, true},
		{"low too small", pc, 2 << 30, 2 << 30, false, false},
		{"low too large", pc, 3<<30 + 1<<29, 1 << 30, false, false},
		{"high too large", pc, 3 << 30, 3 << 30, false, false},
		{"before firmware", early, 2 << 30, 1 << 30, false, true},
		{"before firmware, wrong split", early, 3 << 30, 0, false, false},
		{"before firmware, pluggable", early, 2 << 30, 1 << 30, true, false},
		{"nothing said", windows{{0xa0000, 0xbffff, false}}, 1 << 30, 0, false, false},
	} {
		if err := tc.ws.prove(tc.low, tc.high, tc.slots); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func FuzzWindows(f *testing.F) {
	block := make([]byte, 256)
	copy(block, "FACS\x40")
	copy(block[facsSize:], "DSDT\xc0")
	copy(block[100:], "\x87\x17\x00\x00\x0c\x01\x00\x00\x00\x00\x00\x00\x00\xc0\xff\xff\xbf\xfe\x00\x00\x00\x00\x00\x00\xc0\x3e")
	f.Add(block)
	f.Fuzz(func(t *testing.T, data []byte) {
		ws, err := parseWindows(data)
		if (ws == nil) == (err == nil) || len(ws) > len(data) {
			t.Fatalf("%d windows and error %v", len(ws), err)
		}
		if err := ws.prove(1<<30, 0, false); err == nil && len(ws) == 0 {
			t.Fatal("nothing proves something")
		}
	})
}
