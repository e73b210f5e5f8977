package btf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cbtf "github.com/cilium/ebpf/btf"
)

// Types that most tests use; the names are those of testdata/shapes.c.
var (
	typeInt  = &cbtf.Int{Name: "int", Size: 4, Encoding: cbtf.Signed}
	typeU32  = &cbtf.Typedef{Name: "u32", Type: &cbtf.Int{Name: "unsigned int", Size: 4}}
	typeChar = &cbtf.Int{Name: "char", Size: 1, Encoding: cbtf.Signed}
	typeList = func() *cbtf.Struct {
		s := &cbtf.Struct{Name: "list_head", Size: 16}
		s.Members = []cbtf.Member{{Name: "next", Type: &cbtf.Pointer{Target: s}}, {Name: "prev", Type: &cbtf.Pointer{Target: s}, Offset: 64}}
		return s
	}()
	typeColor = &cbtf.Enum{Name: "color", Size: 4, Signed: true, Values: []cbtf.EnumValue{{Name: "GREEN", Value: 7}, {Name: "BLUE", Value: ^uint64(2)}}}
	typeBig   = &cbtf.Enum{Name: "big", Size: 8, Values: []cbtf.EnumValue{{Name: "HUGE_VALUE", Value: 1 << 32}}}
	typeOuter = &cbtf.Struct{Name: "outer", Size: 96, Members: []cbtf.Member{
		{Name: "list", Type: typeList},
		{Name: "ready", Type: typeU32, Offset: 128, BitfieldSize: 1},
		{Name: "mode", Type: typeU32, Offset: 129, BitfieldSize: 5},
		{Name: "sign", Type: typeInt, Offset: 154, BitfieldSize: 4},
		{Type: &cbtf.Union{Size: 8, Members: []cbtf.Member{
			{Name: "wide", Type: &cbtf.Int{Name: "long int", Size: 8, Encoding: cbtf.Signed}},
			{Type: &cbtf.Struct{Size: 4, Members: []cbtf.Member{{Name: "low", Type: typeChar, Offset: 8}, {Name: "high", Type: typeChar, Offset: 16}}}},
		}}, Offset: 192},
		{Name: "name", Type: &cbtf.Array{Index: typeInt, Type: typeChar, Nelems: 16}, Offset: 256},
		{Name: "grid", Type: &cbtf.Const{Type: &cbtf.Array{Index: typeInt, Type: &cbtf.Array{Index: typeInt, Type: typeU32, Nelems: 3}, Nelems: 2}}, Offset: 384},
		{Name: "color", Type: &cbtf.Volatile{Type: typeColor}, Offset: 576},
		{Name: "tail", Type: &cbtf.Array{Index: typeInt, Type: typeList}, Offset: 640},
	}}
)

// marshal makes a blob of types.
func marshal(t testing.TB, types ...cbtf.Type) []byte {
	t.Helper()
	b, err := cbtf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func shapesBlob(t testing.TB) []byte {
	return marshal(t, typeOuter, typeColor, typeBig,
		&cbtf.Typedef{Name: "outer_t", Type: typeOuter},
		&cbtf.Union{Name: "both", Size: 96, Members: []cbtf.Member{{Name: "o", Type: typeOuter}}},
		&cbtf.Struct{Name: "holder", Size: 8, Members: []cbtf.Member{{Name: "outer", Type: &cbtf.Pointer{Target: &cbtf.Const{Type: typeOuter}}}}},
		&cbtf.Var{Name: "object", Type: typeOuter})
}

func mustParse(t testing.TB, data []byte) *Types {
	t.Helper()
	types, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return types
}

func TestField(t *testing.T) {
	types := mustParse(t, shapesBlob(t))
	for path, want := range map[string]Field{
		"outer":                   {Size: 96},
		"struct outer":            {Size: 96},
		"union both":              {Size: 96},
		"outer_t.mode":            {Offset: 16, Size: 4, BitOff: 1, Bits: 5},
		"outer.list":              {Size: 16},
		"outer.list.prev":         {Offset: 8, Size: 8},
		"both.o.list.prev":        {Offset: 8, Size: 8},
		"outer.ready":             {Offset: 16, Size: 4, Bits: 1},
		"outer.sign":              {Offset: 19, Size: 4, BitOff: 2, Bits: 4, Signed: true},
		"outer.wide":              {Offset: 24, Size: 8, Signed: true},
		"outer.high":              {Offset: 26, Size: 1, Signed: true},
		"outer.name":              {Offset: 32, Size: 16, Elem: 1},
		"outer.grid":              {Offset: 48, Size: 24, Elem: 12},
		"outer.color":             {Offset: 72, Size: 4, Signed: true},
		"outer.tail":              {Offset: 80, Elem: 16},
		"u32":                     {Size: 4},
		"unsigned int":            {Size: 4},
		"int":                     {Size: 4, Signed: true},
		"enum color":              {Size: 4, Signed: true},
		"struct  outer.list.next": {Size: 8},
	} {
		want.Name, want.Known = path, true
		if got, err := types.Field(path); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	if f, err := types.Field("outer.grid"); f.Len() != 2 || (Field{}).Len() != 0 {
		t.Errorf("%d rows, %v", f.Len(), err)
	}
	for path, want := range map[string]error{
		"": ErrNoType, "nosuch": ErrNoType, "nosuch.x": ErrNoType, "enum outer": ErrNoType, "union outer": ErrNoType,
		"struct color": ErrNoType, "object": ErrNoType, "outer.": ErrNoField, "outer.nosuch": ErrNoField,
		"outer.list.next.prev": ErrNoField, "u32.x": ErrNoField, "outer.name.x": ErrNoField, ".": ErrNoType,
	} {
		if f, err := types.Field(path); !errors.Is(err, want) || f != (Field{}) {
			t.Errorf("%q: %+v, %v", path, f, err)
		}
	}
}

func TestEnumerator(t *testing.T) {
	types := mustParse(t, shapesBlob(t))
	for name, want := range map[[2]string]int64{{"color", "GREEN"}: 7, {"color", "BLUE"}: -3, {"big", "HUGE_VALUE"}: 1 << 32} {
		if v, err := types.Enumerator(name[0], name[1]); v != want || err != nil {
			t.Errorf("%v: %d, %v", name, v, err)
		}
	}
	for name, want := range map[[2]string]error{{"color", "RED"}: ErrNoField, {"outer", "GREEN"}: ErrNoType, {"", "GREEN"}: ErrNoType} {
		if v, err := types.Enumerator(name[0], name[1]); !errors.Is(err, want) || v != 0 {
			t.Errorf("%v: %d, %v", name, v, err)
		}
	}
}

func TestComplete(t *testing.T) {
	types := mustParse(t, shapesBlob(t))
	holder, err := types.Lookup("holder")
	if err != nil {
		t.Fatal(err)
	}
	m, _, _ := Member(holder, "outer")
	target := m.Type.(*cbtf.Pointer).Target
	if Decl(m.Type, "o") != "const struct outer *o" {
		t.Errorf("%s", Decl(m.Type, "o"))
	}
	outer, err := types.Complete(target)
	if err != nil {
		t.Fatal(err)
	}
	if _, off, ok := Member(outer, "high"); !ok || off != 26*8 {
		t.Errorf("%v has high at bit %d, %v", outer, off, ok)
	}
	if same, err := types.Complete(outer); same != outer || err != nil {
		t.Errorf("%v, %v", same, err)
	}
	if v, err := types.Var("object"); err != nil || Decl(v, "") != "struct outer" {
		t.Errorf("%v, %v", v, err)
	}
	if v, err := types.Var("outer"); !errors.Is(err, ErrNoType) {
		t.Errorf("%v, %v", v, err)
	}
	foreign := &cbtf.Fwd{Name: "list_head", Kind: cbtf.FwdStruct}
	if c, err := types.Complete(foreign); err != nil || c.TypeName() != "list_head" {
		t.Errorf("a declaration from elsewhere: %v, %v", c, err)
	}
	foreign.Kind = cbtf.FwdUnion
	if c, err := types.Complete(foreign); err != nil || c != cbtf.Type(foreign) {
		t.Errorf("a declaration without a definition: %v, %v", c, err)
	}
}

type layout struct {
	Mode   Field `btf:"outer.nosuch outer.mode"`
	List   Field `btf:"outer.list outer.mode"`
	Gone   Field `btf:"outer.nosuch nosuch.x ?"`
	Other  int
	Either Field `btf:"outer.wide ?"`
}

func TestBind(t *testing.T) {
	types := mustParse(t, shapesBlob(t))
	var l layout
	if err := Bind(types, &l); err != nil {
		t.Fatal(err)
	}
	if l.Mode.Name != "outer.mode" || l.List.Name != "outer.list" || l.Gone.Known || !l.Either.Known {
		t.Errorf("%+v", l)
	}
	var bad struct {
		A Field `btf:"outer.a outer.b"`
		B Field `btf:"outer.mode"`
		C Field `btf:"nosuch"`
	}
	err := Bind(types, &bad)
	if !errors.Is(err, ErrNoField) || !strings.Contains(err.Error(), "outer.a or outer.b, nosuch") {
		t.Errorf("%v", err)
	}
	var optional struct {
		A Field `btf:"s.m ?"`
	}
	malformed := mustParse(t, raw(1, kindStruct<<24|1, 8, 3, 1, 0))
	if err := Bind(malformed, &optional); !errors.Is(err, ErrFormat) {
		t.Errorf("an optional field of a malformed struct: %v", err)
	}
}

// rebuilt returns data with a header of other bytes and its sections elsewhere.
func rebuilt(data []byte, header int, gap int) []byte {
	le := binary.LittleEndian
	hdr := le.Uint32(data[4:])
	section := func(at int) []byte {
		return data[hdr+le.Uint32(data[at:]):][:le.Uint32(data[at+4:])]
	}
	types, names := section(8), section(16)
	out := make([]byte, header)
	copy(out, data[:8])
	le.PutUint32(out[4:], uint32(header))
	put := func(at int, b []byte) {
		out = append(out, make([]byte, gap)...)
		le.PutUint32(out[at:], uint32(len(out)-header))
		le.PutUint32(out[at+4:], uint32(len(b)))
		out = append(out, b...)
	}
	put(16, names) // names before types, as no kernel has it
	put(8, types)
	if header >= 32 {
		put(24, nil)
	}
	return out
}

func TestHeaders(t *testing.T) {
	data := shapesBlob(t)
	for _, header := range []int{24, 28, 32, 40, 4096} {
		for _, gap := range []int{0, 64} {
			b := rebuilt(data, header, gap)
			n, err := Size(b)
			if err != nil || n != len(b) {
				t.Errorf("header of %d, gap %d: %d bytes of %d, %v", header, gap, n, len(b), err)
			}
			types, err := Parse(append(b, "what follows"...))
			if err != nil {
				t.Errorf("header of %d: %v", header, err)
				continue
			}
			if f, err := types.Field("outer.grid"); f.Offset != 48 || err != nil {
				t.Errorf("header of %d: %+v, %v", header, f, err)
			}
		}
	}
	for name, change := range map[string]func(b []byte) []byte{
		"empty":           func(b []byte) []byte { return nil },
		"short":           func(b []byte) []byte { return b[:23] },
		"cut":             func(b []byte) []byte { return b[:len(b)-1] },
		"magic":           func(b []byte) []byte { b[0]++; return b },
		"small header":    func(b []byte) []byte { b[4] = 20; return b },
		"large header":    func(b []byte) []byte { b[6] = 1; return b },
		"long names":      func(b []byte) []byte { b[23] = 0xff; return b },
		"types far off":   func(b []byte) []byte { b[11] = 0xff; return b },
		"names not ended": func(b []byte) []byte { b[len(b)-1] = 'x'; return b },
		"cut type":        func(b []byte) []byte { b[12]--; return b },
	} {
		if types, err := Parse(change(bytes.Clone(data))); !errors.Is(err, ErrFormat) || types != nil {
			t.Errorf("%s: %v, %v", name, types, err)
		}
	}
}

// TestLayoutSection passes a kind that is not known, of which the blob itself says
// how large it is.
func TestLayoutSection(t *testing.T) {
	data := rebuilt(shapesBlob(t), 32, 0)
	le := binary.LittleEndian
	const unknown = 25
	strange := le.AppendUint32(le.AppendUint32(nil, 0), unknown<<24|3) // three elements
	strange = append(strange, make([]byte, 4+6+3*5)...)
	sizes := make([]byte, 4*(unknown+1))
	sizes[4*unknown], sizes[4*unknown+1] = 6, 5
	at, n := le.Uint32(data[8:]), le.Uint32(data[12:])
	b := append(bytes.Clone(data[:32+at+n]), strange...)
	if _, err := Parse(lengthened(b, uint32(len(strange)))); !errors.Is(err, ErrFormat) {
		t.Errorf("an unknown kind: %v", err)
	}
	b = lengthened(b, uint32(len(strange)))
	le.PutUint32(b[24:], uint32(len(b)-32))
	le.PutUint32(b[28:], uint32(len(sizes)))
	types, err := Parse(append(b, sizes...))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := types.Field("outer.grid"); f.Offset != 48 || err != nil {
		t.Errorf("%+v, %v", f, err)
	}
}

// lengthened adds n bytes to what the header says the types have.
func lengthened(b []byte, n uint32) []byte {
	b = bytes.Clone(b)
	le := binary.LittleEndian
	le.PutUint32(b[12:], le.Uint32(b[12:])+n)
	return b
}

// TestSplit reads a module's types on top of a kernel's. The module has a struct of
// its own by the name of one of the kernel's.
func TestSplit(t *testing.T) {
	base := mustParse(t, shapesBlob(t))
	split := splitBlob(t, base.from.(*blob))
	types, err := ParseSplit(split, base)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][2]uint32{"mine.outer.list.prev": {8, 8}, "mine": {0, 104}, "mine.more": {96, 8}, "list_head": {0, 4}, "outer.mode": {16, 4}} {
		if f, err := types.Field(path); err != nil || f.Offset != want[0] || f.Size != want[1] {
			t.Errorf("%s: %+v, %v", path, f, err)
		}
	}
	if f, err := base.Field("list_head"); f.Size != 16 || err != nil {
		t.Errorf("the kernel's own: %+v, %v", f, err)
	}
	mine, err := types.Lookup("mine")
	if err != nil {
		t.Fatal(err)
	}
	m, _, _ := Member(mine, "more")
	full, err := types.Complete(m.Type.(*cbtf.Pointer).Target)
	if _, _, ok := Member(full, "mode"); err != nil || !ok {
		t.Errorf("%v, %v", full, err)
	}
	if _, err := ParseSplit(split, types); !errors.Is(err, ErrFormat) {
		t.Errorf("split on split: %v", err)
	}
}

// splitBlob writes, after the types of base, the struct mine that holds an outer and
// a pointer to one, and a list_head of 4 bytes.
func splitBlob(t *testing.T, base *blob) []byte {
	t.Helper()
	id := func(name string) (out uint32) {
		if err := base.find(name, func(h uint64, _ uint8) bool { out = uint32(h); return out == 0 }); err != nil || out == 0 {
			t.Fatalf("%s: %d, %v", name, out, err)
		}
		return out
	}
	var names []byte
	name := func(s string) uint32 {
		at := base.firstName + uint32(len(base.text)+len(names))
		names = append(append(names, s...), 0)
		return at
	}
	next := uint32(len(base.at)) + 1
	var types []byte
	add := func(words ...uint32) {
		for _, w := range words {
			types = binary.LittleEndian.AppendUint32(types, w)
		}
	}
	add(0, kindPointer<<24, id("outer"))
	add(name("mine"), kindStruct<<24|2, 104, name("outer"), id("outer"), 0, name("more"), next, 96*8)
	add(name("list_head"), kindStruct<<24|1, 4, name("x"), id("u32"), 0)
	return blobOf(types, names)
}

func blobOf(types, names []byte) []byte {
	var out []byte
	for _, w := range []uint32{0x1_eb9f, headerSize, 0, uint32(len(types)), uint32(len(types)), uint32(len(names))} {
		out = binary.LittleEndian.AppendUint32(out, w)
	}
	return append(append(out, types...), names...)
}

// TestNoNames reads a module's types that add no name.
func TestNoNames(t *testing.T) {
	base := mustParse(t, shapesBlob(t))
	types, err := ParseSplit(blobOf(binary.LittleEndian.AppendUint32([]byte{0, 0, 0, 0, 0, 0, 0, kindPointer}, 1), nil), base)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := types.Field("outer.mode"); err != nil || f.Offset != 16 {
		t.Errorf("%+v, %v", f, err)
	}
	if types, err := Parse(blobOf(nil, nil)); err != nil {
		t.Errorf("no types at all: %v", err)
	} else if f, err := types.Field("outer"); !errors.Is(err, ErrNoType) {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestFromFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "btf")
	data := shapesBlob(t)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	types, err := FromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := types.Field("outer.mode"); f.Bits != 5 || err != nil {
		t.Errorf("%+v, %v", f, err)
	}
	if err := os.Truncate(path, int64(len(data)-1)); err != nil {
		t.Fatal(err)
	}
	if _, err := FromFile(path); !errors.Is(err, ErrFormat) {
		t.Errorf("a cut file: %v", err)
	}
	if _, err := FromFile(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
