// Package archtest holds the rules of the project's shape. They are tests, so that
// nobody relaxes one without saying so.
package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/umbravm/umbra"

// layers lists what each package may import of ours, the package's tests left out.
// "dir/..." stands for dir and everything below it. A package that is not listed
// fails the test: where it stands has to be decided.
var layers = map[string][]string{
	"mem":    {},
	"paging": {"mem"},
	"ksym":   {"mem", "internal/vmlinux"},
	"btf":    {"mem", "internal/vmlinux"},

	"source":            {"mem"},
	"source/sourcetest": {"mem", "source"},
	"source/qemu":       {"mem", "source", "internal/qmp"},
	"source/dump":       {"mem", "source"},
	"source/replay":     {"mem", "source"},
	"source/all":        {"mem", "source/..."},

	"kernel": {"mem", "source", "paging", "btf", "ksym", "internal/vmlinux"},
	"linux":  {"mem", "source", "paging", "btf", "ksym", "kernel"},
	"table":  {},
	"":       {"mem", "source/...", "kernel"},

	"internal/qmp":        {},
	"internal/vmlinux":    {},
	"internal/archtest":   {},
	"internal/lab":        {},
	"internal/lab/guest":  {},
	"internal/lab/labctl": {"internal/lab"},
	"internal/matrix":     {"internal/lab"},
	"cmd/umbra":           {"..."},
	"examples/ids":        {"", "linux"},
	"bench":               {"..."},
}

// unlisted are scratch packages nobody commits; they are not part of the project.
func unlisted(dir string) bool { return strings.Contains(dir, "zz_") }

// The sensor will stand beside the machine and must stay readable in an afternoon:
// nothing below it may know Linux, nor parse what a guest says of itself.
var sensor = []string{"mem", "source", "paging", "source/qemu"}

var knowsLinux = []string{"kernel", "linux", "btf", "ksym", "github.com/cilium/ebpf"}

const (
	maxLines   = 700
	unsafeFile = "_unsafe.go"
)

type file struct {
	dir, name string // dir is "" for the module's root
	ast       *ast.File
	source    []byte
}

func (f file) path() string { return path.Join(f.dir, f.name) }
func (f file) test() bool   { return strings.HasSuffix(f.name, "_test.go") }

func (f file) imports() (out []string) {
	for _, i := range f.ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err == nil {
			out = append(out, p)
		}
	}
	return out
}

// files parses every Go file of the project.
func files(t *testing.T) (all []file) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	err = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "bin" || strings.HasPrefix(d.Name(), ".") && rel != "." || unlisted(rel)) {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(p) != ".go" || unlisted(d.Name()) {
			return nil
		}
		source, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(set, p, source, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(rel))
		if dir == "." {
			dir = ""
		}
		all = append(all, file{dir, d.Name(), parsed, source})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("only %d files found: the test looks in the wrong place", len(all))
	}
	return all
}

// ours returns the directory of an import that is ours.
func ours(imp string) (dir string, ok bool) {
	if imp == module {
		return "", true
	}
	return strings.CutPrefix(imp, module+"/")
}

func allowed(rules []string, dir string) bool {
	for _, r := range rules {
		prefix, tree := strings.CutSuffix(r, "...")
		if r == dir || tree && (prefix == "" || dir+"/" == prefix || strings.HasPrefix(dir, prefix)) {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	for _, f := range files(t) {
		rules, ok := layers[f.dir]
		if !ok {
			t.Errorf("%s: package %q has no place among the layers", f.path(), f.dir)
			continue
		}
		if f.test() {
			continue // tests may look from above
		}
		for _, imp := range f.imports() {
			if dir, ok := ours(imp); ok && !allowed(rules, dir) {
				t.Errorf("%s imports %q, which is not below it", f.path(), dir)
			}
		}
	}
}

func TestSensorKnowsNoLinux(t *testing.T) {
	for _, f := range files(t) {
		if f.test() || !slices.Contains(sensor, f.dir) {
			continue
		}
		for _, imp := range f.imports() {
			dir, isOurs := ours(imp)
			if isOurs && slices.Contains(knowsLinux, dir) || slices.ContainsFunc(knowsLinux, func(p string) bool { return strings.HasPrefix(imp, p+"/") }) {
				t.Errorf("%s imports %s", f.path(), imp)
			}
		}
	}
}

func TestOnePackageComment(t *testing.T) {
	comments := make(map[string][]string)
	for _, f := range files(t) {
		if _, ok := comments[f.dir]; !ok {
			comments[f.dir] = nil
		}
		if f.ast.Doc != nil && !strings.HasSuffix(f.ast.Name.Name, "_test") {
			comments[f.dir] = append(comments[f.dir], f.name)
		}
	}
	for dir, in := range comments {
		if len(in) != 1 {
			t.Errorf("package %q has %d package comments, in %q", dir, len(in), in)
		}
	}
}

func TestUnsafeAndCgo(t *testing.T) {
	for _, f := range files(t) {
		for _, imp := range f.imports() {
			switch {
			case imp == "C":
				t.Errorf("%s uses cgo", f.path())
			case imp == "unsafe" && !strings.HasSuffix(f.name, unsafeFile):
				t.Errorf("%s imports unsafe and is not named *%s", f.path(), unsafeFile)
			}
		}
		for _, c := range f.ast.Comments {
			if text := c.List[0].Text; strings.HasPrefix(text, "//go:linkname") && !strings.HasSuffix(f.name, unsafeFile) {
				t.Errorf("%s uses linkname", f.path())
			}
		}
	}
}

func TestFileSizes(t *testing.T) {
	for _, f := range files(t) {
		if n := bytes.Count(f.source, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, more than %d: it is probably two things", f.path(), n, maxLines)
		}
	}
}

// Guest code that ends in _amd64.go would be left out of builds on other hosts.
func TestNoBuildConstraintNames(t *testing.T) {
	for _, f := range files(t) {
		name := strings.TrimSuffix(strings.TrimSuffix(f.name, ".go"), "_test")
		for _, arch := range []string{"amd64", "arm64", "386", "riscv64"} {
			if strings.HasSuffix(name, "_"+arch) {
				t.Errorf("%s: a guest's architecture comes first in a name, %s_…", f.path(), arch)
			}
		}
	}
}

func TestAllowed(t *testing.T) {
	for _, c := range []struct {
		rules []string
		dir   string
		want  bool
	}{
		{[]string{"mem"}, "mem", true}, {[]string{"mem"}, "memory", false}, {[]string{"source/..."}, "source", true},
		{[]string{"source/..."}, "source/qemu", true}, {[]string{"source/..."}, "sourceful", false}, {[]string{"..."}, "x/y", true},
		{[]string{""}, "", true}, {[]string{""}, "linux", false}, {nil, "mem", false},
	} {
		if got := allowed(c.rules, c.dir); got != c.want {
			t.Errorf("allowed(%q, %q) = %v", c.rules, c.dir, got)
		}
	}
}
