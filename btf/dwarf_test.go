package btf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	cbtf "github.com/cilium/ebpf/btf"

	"github.com/umbravm/umbra/internal/vmlinux"
)

// compile makes a program of testdata/shapes.c and returns its path.
func compile(t testing.TB, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "shapes")
	args := append(flags, "-O1", "-o", out, filepath.Join("testdata", "shapes.c"))
	if text, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc %v: %v: %s", args, err, text)
	}
	return out
}

// TestDWARF compares what DWARF of every version says with what the program itself
// says of its types.
func TestDWARF(t *testing.T) {
	for _, flags := range [][]string{
		{"-gdwarf-2"}, {"-gdwarf-3"}, {"-gdwarf-4"}, {"-gdwarf-5"}, {"-g", "-gdwarf64"}, {"-gdwarf-5", "-gz=zlib"},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			program := compile(t, flags...)
			types, err := FromVmlinux(program)
			if err != nil {
				t.Fatal(err)
			}
			truth, err := exec.Command(program).Output()
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for line := range strings.Lines(string(truth)) {
				var want Field
				if _, err := fmt.Sscan(line, &want.Name, &want.Offset, &want.Size, &want.BitOff, &want.Bits); err != nil {
					t.Fatalf("line %q: %v", line, err)
				}
				n++
				got, err := types.Field(want.Name)
				if err != nil {
					t.Errorf("%v", err)
					continue
				}
				if got.Offset != want.Offset || got.Size != want.Size || got.BitOff != want.BitOff || got.Bits != want.Bits {
					t.Errorf("%+v, the program says %s", got, line)
				}
			}
			if n < 30 {
				t.Errorf("the program told of %d fields", n)
			}
			checkDWARF(t, types)
		})
	}
}

// checkDWARF looks at what the program cannot say.
func checkDWARF(t *testing.T, types *Types) {
	t.Helper()
	for path, want := range map[string]Field{
		"outer.grid":  {Elem: 20},
		"outer.in":    {Elem: 16},
		"outer.sign":  {Signed: true},
		"outer.color": {Signed: true},
		"outer.mode":  {},
	} {
		f, err := types.Field(path)
		if err != nil || f.Elem != want.Elem || f.Signed != want.Signed {
			t.Errorf("%s: %+v, %v", path, f, err)
		}
	}
	for name, want := range map[string]int64{"GREEN": 7, "BLUE": -3, "RED": 0} {
		if v, err := types.Enumerator("color", name); v != want || err != nil {
			t.Errorf("%s: %d, %v", name, v, err)
		}
	}
	if v, err := types.Enumerator("big", "HUGE_VALUE"); v != 1<<32 || err != nil {
		t.Errorf("HUGE_VALUE: %d, %v", v, err)
	}
	var out bytes.Buffer
	if err := types.Print(&out, "outer"); err != nil || !strings.Contains(out.String(), "int (*call)(struct outer *, enum color, void)") {
		t.Errorf("%v\n%s", err, &out)
	}
	for name, want := range map[string]string{"object": "struct outer", "numbers": "u32 [6]"} {
		if v, err := types.Var(name); err != nil || Decl(v, "") != want {
			t.Errorf("variable %s: %v, %v", name, v, err)
		}
	}
	checkComplete(t, types)
	if _, err := types.Field("opaque.x"); !errors.Is(err, ErrNoType) {
		t.Errorf("a struct that is only declared: %v", err)
	}
	if _, err := types.Field("main"); !errors.Is(err, ErrNoType) {
		t.Errorf("a function: %v", err)
	}
}

// checkComplete follows pointers.
func checkComplete(t *testing.T, types *Types) {
	t.Helper()
	outer, err := types.Lookup("outer")
	if err != nil {
		t.Fatal(err)
	}
	for name, whole := range map[string]bool{"self": true, "hidden": false, "list": true} {
		m, _, ok := Member(outer, name)
		if name == "list" {
			m, _, ok = Member(m.Type, "next")
		}
		p, isPtr := cbtf.UnderlyingType(m.Type).(*cbtf.Pointer)
		if !ok || !isPtr {
			t.Fatalf("%s is %v", name, m.Type)
		}
		if _, fwd := cbtf.UnderlyingType(p.Target).(*cbtf.Fwd); !fwd {
			t.Errorf("%s leads to %v before it is asked for", name, p.Target)
		}
		target, err := types.Complete(p.Target)
		if err != nil {
			t.Fatal(err)
		}
		if _, is := target.(*cbtf.Struct); is != whole {
			t.Errorf("%s leads to %v", name, target)
		}
	}
}

// TestNoTypes asks files that have no types.
func TestNoTypes(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("no ELF file, but long enough to be one for a while: 64 bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		compile(t, "-g0"):          ErrNoTypes,
		text:                       vmlinux.ErrNotELF,
		dir:                        vmlinux.ErrNotELF,
		filepath.Join(dir, "none"): os.ErrNotExist,
	} {
		if types, err := FromVmlinux(path); !errors.Is(err, want) || types != nil {
			t.Errorf("%s: %v, %v", path, types, err)
		}
	}
	if types, err := FromFile(text); !errors.Is(err, ErrFormat) || types != nil {
		t.Errorf("%v, %v", types, err)
	}
}

// TestCutFile reads types of a file that is cut short after it was opened.
func TestCutFile(t *testing.T) {
	program := compile(t, "-g")
	types, err := FromVmlinux(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(program, 0); err != nil {
		t.Fatal(err)
	}
	if f, err := types.Field("outer.list"); err == nil {
		t.Errorf("%+v out of an empty file", f)
	}
}

// sections returns a program's debugging information.
func sections(t testing.TB, path string) (s scan) {
	t.Helper()
	f, err := vmlinux.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, into := range map[string]*[]byte{
		".debug_info": &s.info, ".debug_abbrev": &s.abbrev, ".debug_str": &s.str, ".debug_line_str": &s.lineStr,
	} {
		if section := f.Section(name); section != nil {
			if *into, err = f.Data(section, 1<<20); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// examine asks debugging information everything, and checks that each answer is
// either a value or an error.
func examine(t *testing.T, s *scan) {
	t.Helper()
	d := &debugInfo{}
	if err := d.load(s); err != nil {
		return
	}
	types := &Types{d}
	for name := range d.names {
		keyword := map[uint8]string{kindStruct: "struct ", kindUnion: "union ", kindEnum: "enum "}[name.kind]
		typ, err := types.Lookup(keyword + name.name)
		if (typ == nil) == (err == nil) {
			t.Fatalf("%q: %v, %v", name, typ, err)
		}
		if err == nil {
			checkPlausible(t, types, typ)
		}
		_ = types.Print(&bytes.Buffer{}, keyword+name.name)
	}
}

// checkPlausible fails when members do not lie in their struct.
func checkPlausible(t *testing.T, types *Types, typ cbtf.Type) {
	t.Helper()
	s, ok := cbtf.UnderlyingType(typ).(*cbtf.Struct)
	if !ok {
		return
	}
	for _, m := range s.Members {
		n, err := sizeOf(m.Type)
		bits := n * 8
		if m.BitfieldSize > 0 {
			bits = uint32(m.BitfieldSize)
		}
		if err != nil || uint32(m.Offset)+bits > s.Size*8 {
			t.Fatalf("member %v of %v has %d bytes, %v", m, s, n, err)
		}
	}
}

// TestFlippedDWARF changes bytes of debugging information.
func TestFlippedDWARF(t *testing.T) {
	for _, version := range []string{"-gdwarf-3", "-gdwarf-5"} {
		whole := sections(t, compile(t, version))
		rnd := rand.New(rand.NewPCG(1, 2))
		for range 500 {
			s := whole
			into := []*[]byte{&s.info, &s.abbrev, &s.str}[rnd.IntN(3)]
			*into = bytes.Clone(*into)
			for range 1 + rnd.IntN(3) {
				(*into)[rnd.IntN(len(*into))] = byte(rnd.Uint32())
			}
			examine(t, &s)
		}
	}
}

func FuzzDWARF(f *testing.F) {
	for _, version := range []string{"-gdwarf-2", "-gdwarf-4", "-gdwarf-5"} {
		s := sections(f, compile(f, version))
		f.Add(s.info, s.abbrev, s.str, s.lineStr)
	}
	f.Fuzz(func(t *testing.T, info, abbrev, str, lineStr []byte) {
		if len(info)+len(abbrev)+len(str)+len(lineStr) > 1<<17 {
			return
		}
		s := scan{dwarfSections: dwarfSections{info: info, abbrev: abbrev, str: str, lineStr: lineStr, strOffsets: lineStr}}
		examine(t, &s)
	})
}

// TestNestedDWARF follows entries that lead to each other without end.
func TestNestedDWARF(t *testing.T) {
	// Two kinds of entries: the unit, and a typedef of the type at an offset.
	abbrev := []byte{1, 0x11, 1, 0, 0, 2, tagTypedef, 0, attrName, formString, attrType, 0x13, 0, 0, 0}
	body := []byte{1}
	const head = 12
	for i := range 200 { // each names the next, the last the first
		at := uint32(head + 1 + i*8)
		next := at + 8
		if i == 199 {
			next = head + 1
		}
		body = append(body, 2, byte('a'+i%26), byte('a'+i/26), 0)
		body = binary.LittleEndian.AppendUint32(body, next)
	}
	body = append(body, 0)
	info := binary.LittleEndian.AppendUint32(nil, uint32(len(body)+head-4))
	info = append(info, 5, 0, unitCompile, 8, 0, 0, 0, 0)
	d := &debugInfo{}
	if err := d.load(&scan{dwarfSections: dwarfSections{info: append(info, body...), abbrev: abbrev}}); err != nil {
		t.Fatal(err)
	}
	if typ, err := (&Types{d}).Lookup("aa"); !errors.Is(err, ErrFormat) {
		t.Errorf("%v, %v", typ, err)
	}
	if len(d.names) != 200 {
		t.Errorf("%d names found", len(d.names))
	}
}
