package btf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

// raw makes a blob of types written as words; names are single letters.
func raw(words ...uint32) []byte {
	var types []byte
	for _, w := range words {
		types = binary.LittleEndian.AppendUint32(types, w)
	}
	return blobOf(types, []byte("\x00s\x00m\x00"))
}

// TestHostile asks of types that no compiler wrote.
func TestHostile(t *testing.T) {
	const s, m = 1, 3
	integer := []uint32{m, kindInt << 24, 4, 32}
	for name, words := range map[string][]uint32{
		"a struct in itself":        {s, kindStruct<<24 | 1, 8, m, 1, 0},
		"a struct in its array":     {s, kindStruct<<24 | 1, 8, m, 2, 0, 0, kindArray << 24, 0, 1, 1, 1},
		"a typedef of itself":       {s, kindTypedef << 24, 1},
		"two typedefs":              {s, kindTypedef << 24, 2, m, kindTypedef << 24, 1},
		"a member past the end":     append(integer, s, kindStruct<<24|1, 8, m, 1, 40),
		"a member far past the end": append(integer, s, kindStruct<<24|1, 8, m, 1, 0xffff_fff8),
		"a member between bytes":    append(integer, s, kindStruct<<24|1, 8, m, 1, 3),
		"a bit field too wide":      append(integer, s, 1<<31|kindStruct<<24|1, 8, m, 1, 33<<24),
		"a bit field past the end":  append(integer, s, 1<<31|kindStruct<<24|1, 4, m, 1, 8<<24|30),
		"an array without end":      append(integer, s, kindTypedef<<24, 3, 0, kindArray<<24, 0, 1, 1, 0xffff_ffff),
		"arrays of arrays":          append(integer, s, kindTypedef<<24, 3, 0, kindArray<<24, 0, 4, 1, 0x10000, 0, kindArray<<24, 0, 1, 1, 0x10000),
		"an absurd struct":          {s, kindStruct << 24, 0xffff_ffff},
		"an integer of 3 bits":      {s, kindInt << 24, 4, 3},
		"a type that is not there":  {s, kindTypedef << 24, 99},
		"a name that is not there":  append(integer, s, kindStruct<<24|1, 4, 1000, 1, 0),
		"a function as an object":   {s, kindTypedef << 24, 2, m, 12 << 24, 1},
		"void as a member":          {s, kindStruct<<24 | 1, 8, m, 0, 0},
		"an enum of 3 bytes":        {s, kindEnum << 24, 3},
	} {
		types, err := Parse(raw(words...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if f, err := types.Field("s"); !errors.Is(err, ErrFormat) || f != (Field{}) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	// A pointer to itself is a type, if a useless one.
	types := mustParse(t, raw(s, kindStruct<<24|1, 8, m, 2, 0, 0, kindPointer<<24, 1))
	if f, err := types.Field("s.m"); f.Size != 8 || err != nil {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestDeep asks of chains that would take a recursive decoder's whole stack.
func TestDeep(t *testing.T) {
	const n = 1 << 20
	for name, kind := range map[string]uint32{"pointers": kindPointer, "typedefs": kindTypedef, "const": kindConst} {
		words := []uint32{1, kindTypedef << 24, 2}
		for i := range uint32(n) {
			words = append(words, 0, kind<<24, i+3)
		}
		types := mustParse(t, raw(words...))
		if f, err := types.Field("s"); !errors.Is(err, ErrFormat) {
			t.Errorf("%d %s: %+v, %v", n, name, f, err)
		}
	}
}

// TestWide asks for a member that is in no one of structs that hold each other many
// times over: 64 to the power of 15 places to look.
func TestWide(t *testing.T) {
	words := []uint32{3, kindInt << 24, 1, 8}
	for range 15 {
		last := countTypes(t, words)
		words = append(words, 1, kindUnion<<24|64, 1)
		for range 64 {
			words = append(words, 0, last, 0)
		}
	}
	data := raw(words...)
	b, err := parse(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	top, err := b.get(uint64(len(b.at)))
	if err != nil {
		t.Fatal(err)
	}
	if m, _, ok := Member(top, "nosuch"); ok {
		t.Errorf("%v", m)
	}
	holder := append(words, 3, kindTypedef<<24, uint32(len(b.at)))
	if f, err := mustParse(t, raw(holder...)).Field("m.nosuch"); !errors.Is(err, ErrFormat) {
		t.Errorf("%+v, %v", f, err)
	}
	if err := mustParse(t, data).Print(&bytes.Buffer{}, "s"); err != nil && !errors.Is(err, ErrFormat) {
		t.Errorf("%v", err)
	}
}

// countTypes returns the number of types written as words.
func countTypes(t *testing.T, words []uint32) uint32 {
	t.Helper()
	b, err := parse(raw(words...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(len(b.at))
}

// TestNamesakes asks for a name that too many types have.
func TestNamesakes(t *testing.T) {
	var words []uint32
	for range maxNamesakes + 1 {
		words = append(words, 1, kindStruct<<24, 8)
	}
	if f, err := mustParse(t, raw(words...)).Field("s"); !errors.Is(err, ErrFormat) {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestFlipped changes bytes of a blob: what is answered then lies inside its struct.
func TestFlipped(t *testing.T) {
	data := shapesBlob(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	refused := 0
	for range 5000 {
		b := bytes.Clone(data)
		for range 1 + rnd.IntN(2) {
			b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
		}
		refused += interrogate(t, b)
	}
	if refused < 500 {
		t.Errorf("only %d questions were refused", refused)
	}
}

// interrogate asks a blob what the tests ask of the true one.
func interrogate(t *testing.T, data []byte) (refused int) {
	t.Helper()
	types, err := Parse(data)
	if (types == nil) == (err == nil) {
		t.Fatalf("%v, %v", types, err)
	}
	if err != nil {
		return 1
	}
	for _, name := range []string{"outer", "both", "holder", "list_head", "outer_t", "color", "u32", "s"} {
		typ, err := types.Lookup(name)
		if (typ == nil) == (err == nil) {
			t.Fatalf("%s: %v, %v", name, typ, err)
		}
		if err != nil {
			refused++
			continue
		}
		checkPlausible(t, types, typ)
		_ = types.Print(&bytes.Buffer{}, name)
	}
	for _, path := range []string{"outer.list.prev", "outer.mode", "outer.high", "outer.grid", "outer.tail", "both.o.color", "holder.outer", "s.m"} {
		f, err := types.Field(path)
		if f.Known != (err == nil) {
			t.Fatalf("%s: %+v, %v", path, f, err)
		}
		root, _, _ := strings.Cut(path, ".")
		whole, rootErr := types.Field(root)
		if err == nil && (rootErr != nil || uint64(f.Offset)+uint64(f.Size) > uint64(whole.Size) && f.Bits == 0) {
			t.Fatalf("%+v of %+v, %v", f, whole, rootErr)
		}
	}
	_, _ = types.Enumerator("color", "GREEN")
	_, _ = types.Var("object")
	return refused
}

func FuzzParse(f *testing.F) {
	data := shapesBlob(f)
	f.Add(data)
	f.Add(rebuilt(data, 32, 4))
	f.Add(raw(1, kindStruct<<24|1, 8, 3, 2, 0, 0, kindPointer<<24, 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		interrogate(t, data)
	})
}

// FuzzParseSplit reads a module's types on a true kernel's.
func FuzzParseSplit(f *testing.F) {
	base := mustParse(f, shapesBlob(f))
	f.Add(raw(1, kindStruct<<24|1, 100, 3, 4, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		types, err := ParseSplit(data, base)
		if (types == nil) == (err == nil) {
			t.Fatalf("%v, %v", types, err)
		}
		if err != nil {
			return
		}
		if typ, err := types.Lookup("s"); (typ == nil) == (err == nil) {
			t.Fatalf("%v, %v", typ, err)
		}
		if f, err := types.Field("outer.mode"); err == nil && !f.Known {
			t.Fatalf("%+v", f)
		}
	})
}
