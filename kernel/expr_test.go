package kernel

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	cbtf "github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

func TestParseExpr(t *testing.T) {
	for in, want := range map[string]string{
		"a":                           "a",
		"a.b->c":                      "((a).b).c",
		"*a.b":                        "*((a).b)",
		"&a[3].b":                     "&(((a)[3]).b)",
		"(struct foo *)0x10":          "(struct foo *)(16)",
		"(u64)x":                      "(u64 )(x)",
		"(x).y":                       "(x).y",
		"(x) + 1":                     "(x) + (1)",
		"(long)-1":                    "(long )(-(1))",
		"(unsigned long)x - 8":        "((unsigned long )(x)) - (8)",
		"per_cpu(runqueues, 1).curr":  "(per_cpu(runqueues, 1)).curr",
		"1 + 2 - 3":                   "((1) + (2)) - (3)",
		"*(const struct foo **)(a+1)": "*((struct foo **)((a) + (1)))",
	} {
		n, err := parseExpr(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got := n.String(); got != want {
			t.Errorf("%q is %s, want %s", in, got, want)
		}
	}
}

func TestParseExprErrors(t *testing.T) {
	for _, in := range []string{
		"", ".", "a.", "a..b", "a b", "a[", "a[1", "(a", "a)", "*", "&", "per_cpu(a)", "per_cpu a", "08", "0x", "a = 1", "a;",
		"a\x00", "a.1", "(struct)", "()a", strings.Repeat("(", 100) + "a" + strings.Repeat(")", 100), strings.Repeat("*", 100) + "a",
		strings.Repeat("a", maxExpr+1),
	} {
		if n, err := parseExpr(in); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q: %v, %v", in, n, err)
		}
	}
}

// Types as BTF gives them: struct node { int id; char name[8]; u16 flags:3, kind:5;
// enum color color; struct { bool ok; }; struct node *next; u8 tail[3]; };
func nodeType() *cbtf.Struct {
	u8 := &cbtf.Int{Name: "unsigned char", Size: 1}
	s := &cbtf.Struct{Name: "node", Size: 48}
	inner := &cbtf.Struct{Size: 1, Members: []cbtf.Member{{Name: "ok", Type: &cbtf.Int{Name: "_Bool", Size: 1, Encoding: cbtf.Bool}}}}
	color := &cbtf.Enum{Name: "color", Size: 4, Values: []cbtf.EnumValue{{Name: "RED", Value: 1}, {Name: "BLUE", Value: 2}}}
	s.Members = []cbtf.Member{
		{Name: "id", Type: &cbtf.Int{Name: "int", Size: 4, Encoding: cbtf.Signed}},
		{Name: "name", Type: &cbtf.Array{Type: &cbtf.Int{Name: "char", Size: 1, Encoding: cbtf.Signed}, Nelems: 8}, Offset: 32},
		{Name: "flags", Type: &cbtf.Int{Name: "short unsigned int", Size: 2}, Offset: 96, BitfieldSize: 3},
		{Name: "kind", Type: &cbtf.Int{Name: "short int", Size: 2, Encoding: cbtf.Signed}, Offset: 99, BitfieldSize: 5},
		{Name: "color", Type: color, Offset: 128},
		{Name: "", Type: inner, Offset: 160},
		{Name: "next", Type: &cbtf.Pointer{Target: s}, Offset: 192},
		{Name: "tail", Type: &cbtf.Array{Type: u8, Nelems: 3}, Offset: 256},
	}
	return s
}

func nodeBytes() []byte {
	b := make([]byte, 48)
	le := binary.LittleEndian
	le.PutUint32(b, 0xfffffffe)
	copy(b[4:], "ab\x1b\x00zzz")
	le.PutUint16(b[12:], 5|0x1f<<3)
	le.PutUint32(b[16:], 2)
	b[20] = 1
	copy(b[32:], []byte{7, 7, 9})
	return b
}

func TestValue(t *testing.T) {
	r := valueReader{w: &Walk{}}
	n, err := r.node(nodeType(), nodeBytes(), 0)
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  id = -2,
  name = "ab\x1b",
  flags = 5,
  kind = -1,
  color = BLUE,
  ok = true,
  next = (struct node *)0x0,
  tail = {7 <2 times>, 9},
}`
	if diff := cmp.Diff(want, (Value{Node: n}).String()); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	got, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	const object = `{"id":-2,"name":"ab\u001b","flags":5,"kind":-1,"color":"BLUE","ok":true,"next":"0x0","tail":[7,7,9]}`
	if string(got) != object {
		t.Errorf("JSON %s, want %s", got, object)
	}
}

// A type that a guest made up must not make the reader run away.
func TestValueBounds(t *testing.T) {
	loop := &cbtf.Struct{Name: "loop", Size: 8}
	loop.Members = []cbtf.Member{{Name: "self", Type: loop}}
	wide := &cbtf.Array{Type: &cbtf.Struct{Name: "empty"}, Nelems: 1 << 31}
	outside := &cbtf.Struct{Name: "s", Size: 8, Members: []cbtf.Member{{Name: "m", Type: &cbtf.Int{Name: "int", Size: 4}, Offset: 1 << 20}}}
	for _, typ := range []cbtf.Type{loop, wide, outside} {
		r := valueReader{w: &Walk{}}
		if n, err := r.node(typ, make([]byte, 64), 0); err == nil {
			t.Errorf("%v gave %v", typ, n)
		}
	}
}

func TestTruncate(t *testing.T) {
	for _, c := range []struct {
		n      uint64
		size   uint32
		signed bool
		want   uint64
	}{{0x1ff, 1, false, 0xff}, {0xff, 1, true, ^uint64(0)}, {0x7f, 1, true, 0x7f}, {1 << 63, 8, true, 1 << 63}, {5, 0, false, 5}} {
		if got := truncate(c.n, c.size, c.signed); got != c.want {
			t.Errorf("truncate(%#x, %d, %v) = %#x, want %#x", c.n, c.size, c.signed, got, c.want)
		}
	}
}

func TestCanonicalInt(t *testing.T) {
	for in, want := range map[string]string{
		"unsigned long": "long unsigned int", "unsigned": "unsigned int", "long long": "long long int", "short": "short int",
		"unsigned char": "unsigned char", "char": "char", "u64": "u64", "struct foo": "struct foo", "signed int": "int", "signed char": "signed char",
	} {
		if got := canonicalInt(in); got != want {
			t.Errorf("canonicalInt(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzParseExpr(f *testing.F) {
	for _, s := range []string{"init_task.comm", "per_cpu(runqueues, 0).curr->comm", "(struct foo *)0x10", "*&a[1+2]", "(u64)-x - 1", "(((", "a->"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseExpr(s)
		if (n == nil) == (err == nil) {
			t.Fatalf("%q: %v, %v", s, n, err)
		}
		if err != nil {
			return
		}
		text := n.String()
		if len(text) > maxExpr {
			return
		}
		again, err := parseExpr(text)
		if errors.Is(err, ErrSyntax) && strings.Contains(err.Error(), "deep") {
			return // parentheses count, and String has more of them
		}
		if err != nil {
			t.Fatalf("%q prints as %q: %v", s, text, err)
		}
		if again.String() != text {
			t.Fatalf("%q prints as %q, and that as %q", s, text, again)
		}
	})
}

// Whatever bytes an object has, it renders, as text and as JSON.
func FuzzValue(f *testing.F) {
	f.Add(nodeBytes())
	typ := nodeType()
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= 32 {
			clear(data[24:32]) // no kernel to look pointers up in
		}
		r := valueReader{w: &Walk{}}
		n, err := r.node(typ, data, 0)
		if (len(n.Fields) > 0) == (err != nil) {
			t.Fatalf("%v, %v", n, err)
		}
		if err != nil {
			return
		}
		for _, c := range (Value{Node: n}).String() {
			if c < ' ' && c != '\n' {
				t.Fatalf("%q steers a terminal", c)
			}
		}
		if b, err := json.Marshal(n); err != nil || !json.Valid(b) {
			t.Fatalf("%s, %v", b, err)
		}
	})
}
