package ksym

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/umbravm/umbra/mem"
)

const (
	testSymbols = 2600
	testSize    = 1 << 20
)

func testImage(l layout) (*memImage, Locations, []Symbol) {
	syms := synthSymbols(l, testSymbols, testSize, 7)
	img, loc := synth(l, syms, testSize, 7)
	return img, loc, syms
}

func eachLayout(t *testing.T, f func(t *testing.T, l layout)) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) { f(t, l) })
	}
}

func TestFind(t *testing.T) {
	eachLayout(t, func(t *testing.T, l layout) {
		img, loc, syms := testImage(l)
		table, err := Find(img)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(loc, table.Locations()); d != "" {
			t.Errorf("locations (-want +got):\n%s", d)
		}
		if table.Encoding() != l.encoding {
			t.Errorf("addresses are %v, want %v", table.Encoding(), l.encoding)
		}
		checkSymbols(t, table, syms)
	})
}

// checkSymbols compares a table with the symbols it was made from, every way
// there is to ask it.
func checkSymbols(t *testing.T, table *Table, syms []Symbol) {
	t.Helper()
	if table.Len() != len(syms) {
		t.Fatalf("%d symbols, want %d", table.Len(), len(syms))
	}
	if d := cmp.Diff(syms, slices.Collect(table.All())); d != "" {
		t.Fatalf("symbols (-want +got):\n%s", d)
	}
	byName := map[string][]Symbol{}
	byAddr := map[mem.Virt]Symbol{}
	for _, s := range syms {
		byName[s.Name] = append(byName[s.Name], s)
		if _, ok := byAddr[s.Addr]; !ok {
			byAddr[s.Addr] = s
		}
	}
	for name, want := range byName {
		if got, ok := table.Lookup(name); !ok || got != want[0].Addr {
			t.Fatalf("Lookup(%q) = %v, %v, want %v", name, got, ok, want[0].Addr)
		}
		if d := cmp.Diff(want, table.LookupAll(name)); d != "" {
			t.Fatalf("LookupAll(%q) (-want +got):\n%s", name, d)
		}
		if a, ok := table.Lookup(name + "!"); ok {
			t.Fatalf("Lookup(%q) = %v", name+"!", a)
		}
	}
	for i, s := range syms {
		if s.Addr < kernelHalf {
			if got, off, ok := table.Symbolize(s.Addr); ok {
				t.Fatalf("Symbolize(%v) = %v+%#x, but that is no address in the image", s.Addr, got, off)
			}
			continue
		}
		if i+1 == len(syms) || syms[i+1].Addr == s.Addr {
			continue
		}
		addr := syms[i+1].Addr - 1
		if got, off, ok := table.Symbolize(addr); !ok || got != byAddr[s.Addr] || off != uint64(addr-s.Addr) {
			t.Fatalf("Symbolize(%v) = %v+%#x, %v, want %v+%#x", addr, got, off, ok, byAddr[s.Addr], addr-s.Addr)
		}
	}
}

func TestLookupOfNoName(t *testing.T) {
	img, _, _ := testImage(layouts[0])
	table, err := Find(img)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "\x00", string(make([]byte, maxName)), "täsk"} {
		if a, ok := table.Lookup(name); ok {
			t.Errorf("Lookup(%q) = %v", name, a)
		}
	}
	syms := slices.Collect(table.All())
	last := syms[len(syms)-1].Addr
	for _, addr := range []mem.Virt{0, synthBase - 1, last + 1, ^mem.Virt(0)} {
		if s, off, ok := table.Symbolize(addr); ok {
			t.Errorf("Symbolize(%v) = %v+%#x", addr, s, off)
		}
	}
	if s, off, ok := table.Symbolize(last); !ok || s.Name != "_end" || off != 0 {
		t.Errorf("Symbolize(%v) = %v+%#x, %v", last, s, off, ok)
	}
}

func TestVMCoreInfo(t *testing.T) {
	eachLayout(t, func(t *testing.T, l layout) {
		img, loc, syms := testImage(l)
		names := map[string]mem.Virt{
			"kallsyms_names":         loc.Names,
			"kallsyms_num_syms":      loc.NumSyms,
			"kallsyms_token_table":   loc.TokenTable,
			"kallsyms_token_index":   loc.TokenIndex,
			"kallsyms_offsets":       loc.Offsets,
			"kallsyms_relative_base": loc.RelativeBase,
			"kallsyms_addresses":     loc.Addresses,
		}
		symbol := func(name string) (mem.Virt, bool) { return names[name], names[name] != 0 }
		got, err := VMCoreInfo(symbol)
		if err != nil {
			t.Fatal(err)
		}
		table, err := Load(img, got)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(loc, table.Locations()); d != "" {
			t.Errorf("locations (-want +got):\n%s", d)
		}
		checkSymbols(t, table, syms)

		for _, needed := range []string{"kallsyms_names", "kallsyms_num_syms", "kallsyms_token_table", "kallsyms_token_index"} {
			old := names[needed]
			delete(names, needed)
			if got, err := VMCoreInfo(symbol); !errors.Is(err, ErrNotFound) || got != (Locations{}) {
				t.Errorf("without %s: %v, %v", needed, got, err)
			}
			names[needed] = old
		}
		delete(names, "kallsyms_offsets")
		delete(names, "kallsyms_addresses")
		if _, err := VMCoreInfo(symbol); !errors.Is(err, ErrNotFound) {
			t.Errorf("without offsets and addresses: %v", err)
		}
	})
}

// TestLoadWrongPlaces moves each part of a table by a little: no such table may
// be taken for one, but for an index or base that happens not to matter.
func TestLoadWrongPlaces(t *testing.T) {
	eachLayout(t, func(t *testing.T, l layout) {
		img, loc, _ := testImage(l)
		for _, by := range []mem.Virt{1, 2, 4, 8, 256, mem.PageSize} {
			for name, part := range map[string]func(l *Locations) *mem.Virt{
				"names":         func(l *Locations) *mem.Virt { return &l.Names },
				"markers":       func(l *Locations) *mem.Virt { return &l.Markers },
				"token table":   func(l *Locations) *mem.Virt { return &l.TokenTable },
				"token index":   func(l *Locations) *mem.Virt { return &l.TokenIndex },
				"number":        func(l *Locations) *mem.Virt { return &l.NumSyms },
				"relative base": func(l *Locations) *mem.Virt { return &l.RelativeBase },
			} {
				for _, up := range []bool{false, true} {
					moved := loc
					p := part(&moved)
					if *p == 0 {
						continue
					}
					if up {
						*p += by
					} else {
						*p -= by
					}
					table, err := Load(img, moved)
					if err == nil || table != nil || !errors.Is(err, ErrMalformed) {
						t.Errorf("%s moved by %d (up %v): %v, %v", name, by, up, table, err)
					}
				}
			}
		}
		for _, outside := range []mem.Virt{0x1000, img.base - 8, img.base + testSize, ^mem.Virt(0) - 3} {
			moved := loc
			moved.Names = outside
			if _, err := Load(img, moved); !errors.Is(err, ErrMalformed) {
				t.Errorf("names at %v: %v", outside, err)
			}
		}
	})
}

func TestDigest(t *testing.T) {
	eachLayout(t, func(t *testing.T, l layout) {
		img, loc, syms := testImage(l)
		table, err := Load(img, loc)
		if err != nil {
			t.Fatal(err)
		}
		slid, slidLoc := img.slide(l, loc, len(syms), 0x1f40_0000)
		other, err := Find(slid)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(slidLoc, other.Locations()); d != "" {
			t.Errorf("slid locations (-want +got):\n%s", d)
		}
		a, _ := table.Lookup("_end")
		if b, ok := other.Lookup("_end"); !ok || b-a != 0x1f40_0000 {
			t.Errorf("_end is at %v, %v, without KASLR at %v", b, ok, a)
		}
		if table.Digest() != other.Digest() {
			t.Error("KASLR changes the digest")
		}
		seen := map[[32]byte]string{table.Digest(): "the original"}
		renamed, moved := slices.Clone(syms), slices.Clone(syms)
		renamed[100].Name += "x"
		moved[len(moved)-1].Addr += 16
		for name, with := range map[string][]Symbol{"a name": renamed, "an address": moved} {
			img, loc := synth(l, with, testSize, 7)
			changed, err := Load(img, loc)
			if err != nil {
				t.Fatalf("%s changed: %v", name, err)
			}
			if was, ok := seen[changed.Digest()]; ok {
				t.Errorf("with %s changed the digest is that of %s", name, was)
			}
			seen[changed.Digest()] = name
		}
	})
}

// TestHoles finds a table in an image with unreadable pages, and says so when
// they are in the table itself.
func TestHoles(t *testing.T) {
	eachLayout(t, func(t *testing.T, l layout) {
		img, loc, syms := testImage(l)
		lo, hi := testSize, 0
		for _, a := range []mem.Virt{loc.Names, loc.TokenIndex, max(loc.Offsets, loc.Addresses)} {
			lo, hi = min(lo, int(a-img.base)), max(hi, int(a-img.base))
		}
		lo, hi = lo/mem.PageSize-4, (hi+8*testSymbols)/mem.PageSize+4
		img.holes = map[int]bool{}
		for page := range testSize / mem.PageSize {
			img.holes[page] = (page < lo || page > hi) && page%3 != 0
		}
		table, err := Find(img)
		if err != nil {
			t.Fatal(err)
		}
		checkSymbols(t, table, syms)

		img.holes = map[int]bool{int(loc.Names-img.base)/mem.PageSize + 3: true}
		if table, err := Find(img); err == nil || table != nil || !errors.Is(err, ErrNotFound) {
			t.Errorf("with a hole in the names: %v, %v", table, err)
		}
		if table, err := Load(img, loc); err == nil || table != nil || !errors.Is(err, ErrMalformed) {
			t.Errorf("with a hole in the names: %v, %v", table, err)
		}
	})
}

// TestSample finds a table by its address table, reading little else.
func TestSample(t *testing.T) {
	eachLayout(t, func(t *testing.T, l layout) {
		const size = 24 << 20
		syms := synthSymbols(l, 80_000, size, 3)
		img, loc := synth(l, syms, size, 3)
		v, err := newView(img)
		if err != nil {
			t.Fatal(err)
		}
		f := finder{view: v, budget: fullBudget}
		if err := f.sample(); err != nil {
			t.Fatal(err)
		}
		if l.encoding == Plain { // not looked for in samples
			f.found, _ = Find(img)
		}
		if f.found == nil {
			t.Fatalf("not found: %v", f.why)
		}
		if d := cmp.Diff(loc, f.found.Locations()); d != "" {
			t.Errorf("locations (-want +got):\n%s", d)
		}
	})
}

// TestFlips changes bytes of the tables: what comes of it is a table that can be
// read to the end or an error, and never a different table where the change can
// be seen.
func TestFlips(t *testing.T) {
	eachLayout(t, func(t *testing.T, l layout) {
		img, loc, _ := testImage(l)
		r := rand.New(rand.NewPCG(11, 11))
		lo := int(min(loc.Names, max(loc.Offsets, loc.Addresses))-img.base) - 64
		hi := int(max(loc.TokenIndex, max(loc.Offsets, loc.Addresses))-img.base) + 8*testSymbols
		failed := 0
		for range 80 {
			at, bit := lo+r.IntN(hi-lo), byte(1)<<r.IntN(8)
			img.bytes[at] ^= bit
			table, err := Load(img, loc)
			checkOutcome(t, table, err)
			if err != nil {
				failed++
			}
			img.bytes[at] ^= bit
		}
		if failed == 0 {
			t.Error("no flipped bit was noticed")
		}
		for at := range mem.Virt(4) {
			for _, a := range []mem.Virt{loc.NumSyms, loc.Markers + 8, loc.TokenIndex + 100} {
				img.bytes[a+at-img.base] ^= 0x10
				if table, err := Load(img, loc); err == nil {
					t.Errorf("byte at %v flipped: %d symbols, no error", a+at, table.Len())
				}
				img.bytes[a+at-img.base] ^= 0x10
			}
		}
	})
}

// checkOutcome holds what must be true of any bytes: either a table, all of
// which can be read and found again, or an error.
func checkOutcome(t *testing.T, table *Table, err error) {
	t.Helper()
	if (table == nil) == (err == nil) {
		t.Fatalf("table %v and error %v", table, err)
	}
	if err != nil {
		if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrNotFound) {
			t.Fatalf("error of no kind: %v", err)
		}
		return
	}
	n := 0
	for s := range table.All() {
		if n%509 == 0 {
			if !slices.Contains(table.LookupAll(s.Name), s) {
				t.Fatalf("symbol %d, %+v, is not found by its name", n, s)
			}
			if _, _, ok := table.Symbolize(s.Addr); ok != (n >= table.addresses.first) {
				t.Fatalf("symbol %d, %+v, is found by its address: %v", n, s, ok)
			}
		}
		if len(s.Name) == 0 || len(s.Name) >= maxName {
			t.Fatalf("symbol %d has a name of %d bytes", n, len(s.Name))
		}
		n++
	}
	if n != table.Len() || n < minSymbols || n > maxSymbols {
		t.Fatalf("%d symbols of %d", n, table.Len())
	}
	table.Digest()
}
