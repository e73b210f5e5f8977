package btf

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	cbtf "github.com/cilium/ebpf/btf"

	"github.com/umbravm/umbra/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// guestBTF returns what a guest's own kernel shows as its BTF.
func guestBTF(t testing.TB, version string) []byte {
	t.Helper()
	g := lab.Shared(t, lab.Config{Kernel: version, MemMB: 256, Append: []string{"umbra.state=0"}})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	data, err := g.Ask(ctx, "cat /sys/kernel/btf/vmlinux")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestGuests decodes every type of real kernels and compares it with what the
// library makes of the same bytes.
func TestGuests(t *testing.T) {
	for _, version := range lab.Kernels() {
		t.Run(version, func(t *testing.T) {
			data := guestBTF(t, version)
			if n, err := Size(data[:headerSize+8]); err != nil || n != len(data) {
				t.Errorf("size %d, %v, the kernel shows %d bytes", n, err, len(data))
			}
			compareWithLibrary(t, data)
		})
	}
}

func compareWithLibrary(t *testing.T, data []byte) {
	t.Helper()
	want, err := cbtf.LoadSpecFromReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	b, err := parse(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	kinds, deepest, before := make(map[string]int), 0, 0
	for id := 1; id <= len(b.at); id++ {
		w, err := want.TypeByID(cbtf.TypeID(id))
		if err != nil {
			t.Fatal(err)
		}
		switch w.(type) {
		case *cbtf.Func, *cbtf.Datasec:
			if got, err := b.get(uint64(id)); err == nil {
				t.Fatalf("type %d, %v, decodes to %v", id, w, got)
			}
			continue
		}
		if fmt.Sprintf("%T", w) == "*btf.declTag" {
			continue
		}
		b.nodes = 0 // all of the types are more than one answer may need
		got, err := b.get(uint64(id))
		if err != nil {
			t.Fatalf("type %d, %v: %v", id, w, err)
		}
		if b.nodes > before {
			deepest, before = id, b.nodes
		}
		if diff := differ(got, w, maxDepth); diff != "" {
			t.Fatalf("type %d, %v: %s", id, w, diff)
		}
		kinds[fmt.Sprintf("%T", w)]++
		if name := w.TypeName(); name != "" && rank(kindOf(w), "") > 0 {
			found := false
			if err := b.find(name, func(h uint64, _ uint8) bool { found = found || h == uint64(id); return true }); err != nil || !found {
				t.Fatalf("type %d, %v: not found by its name: %v", id, w, err)
			}
		}
	}
	t.Logf("%d types of %v, most is in type %d: %d nodes", len(b.at), kinds, deepest, before)
	// Not every build names its per-CPU variables.
	for _, k := range []string{"*btf.Struct", "*btf.Union", "*btf.Enum", "*btf.Typedef", "*btf.FuncProto", "*btf.Array"} {
		if kinds[k] < 50 {
			t.Errorf("%d types of %s compared", kinds[k], k)
		}
	}
}

// TestMemory counts what a kernel's types take up besides the blob, with all that
// Umbra's commands ask of them and more.
func TestMemory(t *testing.T) {
	data := guestBTF(t, "7.2")
	before := liveBytes()
	types := mustParse(t, data)
	for _, name := range commonTypes {
		if _, err := types.Field(name); err != nil {
			t.Error(err)
		}
	}
	used := int64(liveBytes()) - int64(before)
	t.Logf("%d KB besides %d KB of BTF", used>>10, len(data)>>10)
	if used > 12<<20 {
		t.Errorf("%d bytes besides the blob", used)
	}
	runtime.KeepAlive(types)
	runtime.KeepAlive(data)
}

var commonTypes = []string{
	"task_struct.comm", "mm_struct.pgd", "sock.__sk_common.skc_state", "tcp_sock", "inet_sock", "net_device.name", "module.list",
	"super_block.s_root", "inode.i_ino", "dentry.d_name.name", "file.f_op", "net.ipv4", "pid_namespace.idr", "cred.uid",
}

func liveBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkParse indexes the BTF of a real kernel.
func BenchmarkParse(b *testing.B) {
	data := guestBTF(b, "7.2")
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(data); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkField asks for members of a type that was decoded before, and of one that
// was not.
func BenchmarkField(b *testing.B) {
	data := guestBTF(b, "7.2")
	b.Run("again", func(b *testing.B) {
		types := mustParse(b, data)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := types.Field("task_struct.comm"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("first", func(b *testing.B) {
		table, err := parse(data, nil)
		if err != nil {
			b.Fatal(err)
		}
		types := &Types{table}
		b.ReportAllocs()
		for b.Loop() {
			table.decoder = decoder{}
			if _, err := types.Field("task_struct.comm"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func kindOf(t cbtf.Type) uint8 {
	switch t.(type) {
	case *cbtf.Struct:
		return kindStruct
	case *cbtf.Union:
		return kindUnion
	case *cbtf.Typedef:
		return kindTypedef
	case *cbtf.Enum:
		return kindEnum
	case *cbtf.Int:
		return kindInt
	}
	return 0
}

// differ tells how two types differ. Behind pointers got has declarations in place
// of structs and unions.
func differ(got, want cbtf.Type, depth int) string {
	if depth == 0 {
		return "nested too deep"
	}
	down := func(what string, g, w cbtf.Type) string {
		if d := differ(g, w, depth-1); d != "" {
			return what + ": " + d
		}
		return ""
	}
	switch w := want.(type) {
	case *cbtf.Int:
		if g, ok := got.(*cbtf.Int); !ok || *g != *w {
			return unlike(got, want)
		}
	case *cbtf.Float:
		if g, ok := got.(*cbtf.Float); !ok || *g != *w {
			return unlike(got, want)
		}
	case *cbtf.Void:
		if _, ok := got.(*cbtf.Void); !ok {
			return unlike(got, want)
		}
	case *cbtf.Fwd:
		if g, ok := got.(*cbtf.Fwd); !ok || *g != *w {
			return unlike(got, want)
		}
	case *cbtf.Enum:
		g, ok := got.(*cbtf.Enum)
		if !ok || g.Name != w.Name || g.Size != w.Size || g.Signed != w.Signed || len(g.Values) != len(w.Values) {
			return unlike(got, want)
		}
		for i := range w.Values {
			if g.Values[i] != w.Values[i] {
				return fmt.Sprintf("%v, the library says %v", g.Values[i], w.Values[i])
			}
		}
	case *cbtf.Struct:
		if f, ok := got.(*cbtf.Fwd); ok && depth < maxDepth && f.Name == w.Name && f.Kind == cbtf.FwdStruct {
			return ""
		}
		g, ok := got.(*cbtf.Struct)
		if !ok || g.Name != w.Name || g.Size != w.Size {
			return unlike(got, want)
		}
		if g.Name != "" && depth < maxDepth {
			return "" // compared by itself
		}
		return differMembers(g.Members, w.Members, depth)
	case *cbtf.Union:
		if f, ok := got.(*cbtf.Fwd); ok && depth < maxDepth && f.Name == w.Name && f.Kind == cbtf.FwdUnion {
			return ""
		}
		g, ok := got.(*cbtf.Union)
		if !ok || g.Name != w.Name || g.Size != w.Size {
			return unlike(got, want)
		}
		if g.Name != "" && depth < maxDepth {
			return "" // compared by itself
		}
		return differMembers(g.Members, w.Members, depth)
	case *cbtf.Array:
		g, ok := got.(*cbtf.Array)
		if !ok || g.Nelems != w.Nelems {
			return unlike(got, want)
		}
		return down("element", g.Type, w.Type)
	case *cbtf.Pointer:
		g, ok := got.(*cbtf.Pointer)
		if !ok {
			return unlike(got, want)
		}
		return down("target", g.Target, w.Target)
	case *cbtf.FuncProto:
		g, ok := got.(*cbtf.FuncProto)
		if !ok || len(g.Params) != len(w.Params) {
			return unlike(got, want)
		}
		for i := range w.Params {
			if g.Params[i].Name != w.Params[i].Name {
				return unlike(got, want)
			}
			if d := down("parameter", g.Params[i].Type, w.Params[i].Type); d != "" {
				return d
			}
		}
		return down("return", g.Return, w.Return)
	default:
		gn, gt := wrapped(got)
		wn, wt := wrapped(want)
		if gt == nil || gn != wn {
			return unlike(got, want)
		}
		return down(gn, gt, wt)
	}
	return ""
}

func unlike(got, want any) string { return fmt.Sprintf("%v, the library says %v", got, want) }

func differMembers(got, want []cbtf.Member, depth int) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d members, the library says %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g.Name != w.Name || g.Offset != w.Offset || g.BitfieldSize != w.BitfieldSize {
			return fmt.Sprintf("member %v, the library says %v", g, w)
		}
		if d := differ(g.Type, w.Type, depth-1); d != "" {
			return fmt.Sprintf("member %q: %s", w.Name, d)
		}
	}
	return ""
}

// wrapped takes one qualifier or name off a type.
func wrapped(t cbtf.Type) (what string, inner cbtf.Type) {
	switch t := t.(type) {
	case *cbtf.Typedef:
		return "typedef " + t.Name, t.Type
	case *cbtf.Const:
		return "const", t.Type
	case *cbtf.Volatile:
		return "volatile", t.Type
	case *cbtf.Restrict:
		return "restrict", t.Type
	case *cbtf.TypeTag:
		return "tag " + t.Value, t.Type
	case *cbtf.Var:
		return "variable " + t.Name, t.Type
	}
	return fmt.Sprintf("%T", t), nil
}
