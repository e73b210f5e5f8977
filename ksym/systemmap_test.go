package ksym

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/umbravm/umbra/mem"
)

func mapText(syms []Symbol) string {
	var b strings.Builder
	for _, s := range syms {
		fmt.Fprintf(&b, "%016x %c %s\n", uint64(s.Addr), s.Type, s.Name)
	}
	return b.String()
}

func TestSystemMap(t *testing.T) {
	syms := synthSymbols(layouts[0], testSymbols, testSize, 7)
	table, err := ReadSystemMap(strings.NewReader(mapText(syms) + "\nffffffffc0000000 t mod_init\t[mod]\n"))
	if err != nil {
		t.Fatal(err)
	}
	checkSymbols(t, table, syms)

	const by = 0x1200_0000
	slid, err := table.Slide(by)
	if err != nil {
		t.Fatal(err)
	}
	moved := slices.Clone(syms)
	for i := range moved {
		if moved[i].Addr >= kernelHalf {
			moved[i].Addr += by
		}
	}
	checkSymbols(t, slid, moved)
	checkSymbols(t, table, syms)
	if slid.Digest() != table.Digest() {
		t.Error("sliding changes the digest")
	}
	if slid, err := table.Slide(1 << 31); err == nil {
		t.Errorf("slid past the address space: %d symbols", slid.Len())
	}
}

// TestSlide moves tables of every encoding.
func TestSlide(t *testing.T) {
	eachLayout(t, func(t *testing.T, l layout) {
		img, loc, syms := testImage(l)
		table, err := Load(img, loc)
		if err != nil {
			t.Fatal(err)
		}
		slid, err := table.Slide(mem.PageSize)
		if err != nil {
			t.Fatal(err)
		}
		for i := range syms {
			if syms[i].Addr >= kernelHalf {
				syms[i].Addr += mem.PageSize
			}
		}
		checkSymbols(t, slid, syms)
	})
}

func TestSystemMapUnsorted(t *testing.T) {
	text := "ffffffff81000100 t b\n0000000000000040 A p\nffffffff81000000 T a\n"
	table, err := ReadSystemMap(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Symbol{{"p", 'A', 0x40}, {"a", 'T', synthBase}, {"b", 't', synthBase + 0x100}}
	if d := cmp.Diff(want, slices.Collect(table.All())); d != "" {
		t.Errorf("symbols (-want +got):\n%s", d)
	}
}

func TestSystemMapBad(t *testing.T) {
	good := "ffffffff81000000 T _text\n"
	for _, text := range []string{
		"",
		"\n\n",
		"0000000000000000 A only_absolute\n",
		"ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n",
		good + "ffffffff81000000 T\n",
		good + "ffffffff81000000 TT name\n",
		good + "ffffffff8100000g T name\n",
		good + "1ffffffff81000000 T name\n",
		good + "ffffffff81000000 T n\x01me\n",
		good + "ffffffff81000000 T " + strings.Repeat("x", maxName) + "\n",
		good + strings.Repeat("x", 1<<16),
		"\x7fELF\x02\x01\x01",
	} {
		if table, err := ReadSystemMap(strings.NewReader(text)); table != nil || err == nil {
			t.Errorf("%.60q: %v, %v", text, table, err)
		}
	}
}

func FuzzSystemMap(f *testing.F) {
	f.Add("ffffffff81000000 T _text\n0000000000000040 A p\n")
	f.Add("ffffffff81000000 T a\nffffffff81000000 t a\nffffffffc0000000 t m\t[m]\n")
	f.Add("ffffffff81000000 T " + strings.Repeat("y", 200) + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := ReadSystemMap(strings.NewReader(text))
		if (table == nil) == (err == nil) {
			t.Fatalf("table %v and error %v", table, err)
		}
		if err != nil {
			return
		}
		n := 0
		for s := range table.All() {
			if !slices.Contains(table.LookupAll(s.Name), s) {
				t.Fatalf("%+v is not found", s)
			}
			n++
		}
		if n != table.Len() || n == 0 {
			t.Fatalf("%d symbols of %d", n, table.Len())
		}
		again, err := ReadSystemMap(strings.NewReader(mapText(slices.Collect(table.All()))))
		if err != nil || again.Digest() != table.Digest() {
			t.Fatalf("written and read again: %v", err)
		}
	})
}
