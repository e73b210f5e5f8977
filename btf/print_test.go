package btf_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	cbtf "github.com/cilium/ebpf/btf"

	"github.com/umbravm/umbra/btf"
)

// shapes returns BTF with every kind of declaration in it, as a blob.
func shapes(t testing.TB) []byte {
	t.Helper()
	i32 := &cbtf.Int{Name: "int", Size: 4, Encoding: cbtf.Signed}
	u16 := &cbtf.Int{Name: "short unsigned int", Size: 2}
	char := &cbtf.Int{Name: "char", Size: 1}
	node := &cbtf.Struct{Name: "node", Size: 40}
	fn := &cbtf.FuncProto{Return: i32, Params: []cbtf.FuncParam{{Name: "n", Type: &cbtf.Pointer{Target: node}}, {Type: &cbtf.Pointer{Target: &cbtf.Void{}}}}}
	node.Members = []cbtf.Member{
		{Name: "next", Type: &cbtf.Pointer{Target: node}},
		{Name: "fn", Type: &cbtf.Pointer{Target: fn}, Offset: 64},
		{Name: "name", Type: &cbtf.Pointer{Target: &cbtf.Const{Type: char}}, Offset: 128},
		{Name: "", Type: &cbtf.Union{Size: 8, Members: []cbtf.Member{
			{Name: "grid", Type: &cbtf.Array{Index: i32, Type: &cbtf.Array{Index: i32, Type: u16, Nelems: 2}, Nelems: 2}},
			{Name: "row", Type: &cbtf.Pointer{Target: &cbtf.Array{Index: i32, Type: i32, Nelems: 4}}},
		}}, Offset: 192},
		{Name: "lo", Type: u16, Offset: 256, BitfieldSize: 3},
		{Name: "hi", Type: u16, Offset: 259, BitfieldSize: 13},
	}
	color := &cbtf.Enum{Name: "color", Size: 4, Signed: true, Values: []cbtf.EnumValue{{Name: "RED", Value: 0}, {Name: "NONE", Value: ^uint64(0)}}}
	pair := &cbtf.Typedef{Name: "pair_t", Type: &cbtf.Struct{Size: 8, Members: []cbtf.Member{{Name: "a", Type: i32}, {Name: "b", Type: i32, Offset: 32}}}}
	b, err := cbtf.NewBuilder([]cbtf.Type{node, color, pair, &cbtf.Typedef{Name: "handler_t", Type: &cbtf.Pointer{Target: fn}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func TestPrint(t *testing.T) {
	types, err := btf.Parse(shapes(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"node": `struct node {
    struct node *next; /* 0 8 */
    int (*fn)(struct node *n, void *); /* 8 8 */
    const char *name; /* 16 8 */
    union {
        short unsigned int grid[2][2]; /* 24 8 */
        int (*row)[4]; /* 24 8 */
    }; /* 24 8 */
    short unsigned int lo:3; /* 32: 0 2 */
    short unsigned int hi:13; /* 32: 3 2 */
};
/* size: 40, members: 6 */
`,
		"enum color": "enum color {\n    RED = 0,\n    NONE = -1,\n};\n/* size: 4, enumerators: 2 */\n",
		"pair_t":     "typedef struct {\n    int a; /* 0 4 */\n    int b; /* 4 4 */\n} pair_t;\n/* size: 8 */\n",
		"handler_t":  "typedef int (*handler_t)(struct node *n, void *);\n/* size: 8 */\n",
		"int":        "int\n/* size: 4, signed */\n",
	} {
		var out bytes.Buffer
		if err := types.Print(&out, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := squeeze(out.String()); got != want {
			t.Errorf("%s prints as\n%swant\n%s", name, got, want)
		}
	}
	if err := types.Print(&bytes.Buffer{}, "nosuch"); !errors.Is(err, btf.ErrNoType) {
		t.Errorf("nosuch: %v", err)
	}
	if err := types.Print(broken{}, "node"); err == nil {
		t.Error("a writer's error was lost")
	}
}

// squeeze drops the padding between columns, not the margin.
func squeeze(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		margin := line[:len(line)-len(strings.TrimLeft(line, " "))]
		b.WriteString(margin + strings.Join(strings.Fields(line), " ") + "\n")
	}
	return b.String()
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestEntries(t *testing.T) {
	types, err := btf.Parse(shapes(t))
	if err != nil {
		t.Fatal(err)
	}
	es, err := types.Entries("node")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range es {
		got = append(got, strings.Repeat(">", e.Depth)+e.Name)
		// The path of a member leads to where the entry says it is.
		if f, err := types.Field("node." + e.Name); e.Name != "" && (err != nil || f.Offset != e.Offset && e.Bits == nil) {
			t.Errorf("%s: entry at %d, field at %d, %v", e.Name, e.Offset, f.Offset, err)
		}
	}
	if s := strings.Join(got, " "); s != "next fn name  >grid >row lo hi" {
		t.Errorf("entries %s", s)
	}
	if hi := es[len(es)-1]; hi.Bits == nil || *hi.Bits != 13 || *hi.BitOff != 3 {
		t.Errorf("hi: %+v", hi)
	}
	if es, err := types.Entries("color"); err != nil || len(es) != 2 || *es[1].Value != -1 {
		t.Errorf("color: %+v, %v", es, err)
	}
	if es, err := types.Entries("int"); err == nil {
		t.Errorf("int has entries %v", es)
	}
}

// A type that nests or declares without end must end all the same.
func TestDeclBounds(t *testing.T) {
	loop := &cbtf.Pointer{}
	loop.Target = loop
	if s := btf.Decl(loop, "x"); len(s) > 1<<14 {
		t.Errorf("%d bytes", len(s))
	}
	fn := &cbtf.FuncProto{}
	fn.Return = &cbtf.Pointer{Target: fn}
	fn.Params = []cbtf.FuncParam{{Type: fn.Return}, {Type: fn.Return}, {Type: fn.Return}}
	if s := btf.Decl(fn, "f"); len(s) > 1<<14 {
		t.Errorf("%d bytes", len(s))
	}
}

func FuzzPrint(f *testing.F) {
	blob := shapes(f)
	f.Add(blob, 30, byte(1))
	f.Add(blob, 60, byte(0x80))
	f.Fuzz(func(t *testing.T, blob []byte, at int, flip byte) {
		if len(blob) > 1<<14 {
			return
		}
		blob = bytes.Clone(blob)
		if at >= 0 && at < len(blob) {
			blob[at] ^= flip
		}
		types, err := btf.Parse(blob)
		if err != nil {
			return
		}
		for _, name := range []string{"node", "color", "pair_t", "handler_t", "int"} {
			var out bytes.Buffer
			if err := types.Print(&out, name); err == nil && out.Len() == 0 {
				t.Fatalf("%s: neither text nor error", name)
			}
			if es, err := types.Entries(name); err != nil && es != nil {
				t.Fatalf("%s: both %v and %v", name, es, err)
			}
		}
	})
}
