package vmlinux

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
)

type part struct {
	name  string
	kind  uint32
	flags uint64
	addr  uint64
	link  uint32
	data  []byte
}

// build makes an ELF file of parts; the names of sections come last.
func build(parts ...part) []byte {
	le := binary.LittleEndian
	names := []byte{0}
	parts = append(parts, part{name: ".shstrtab", kind: 3})
	for _, p := range parts {
		names = append(append(names, p.name...), 0)
	}
	parts[len(parts)-1].data = names
	out, headers := make([]byte, headerSize), make([]byte, sectionSize)
	for _, p := range parts {
		h := make([]byte, sectionSize)
		le.PutUint32(h, uint32(bytes.Index(names, append([]byte(p.name), 0))))
		le.PutUint32(h[4:], p.kind)
		le.PutUint64(h[8:], p.flags)
		le.PutUint64(h[16:], p.addr)
		le.PutUint64(h[24:], uint64(len(out)))
		le.PutUint64(h[32:], uint64(len(p.data)))
		le.PutUint32(h[40:], p.link)
		headers, out = append(headers, h...), append(out, p.data...)
	}
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], typeExec)
	le.PutUint16(out[18:], machineX86)
	le.PutUint64(out[40:], uint64(len(out)))
	le.PutUint16(out[58:], sectionSize)
	le.PutUint16(out[60:], uint16(len(parts)+1))
	le.PutUint16(out[62:], uint16(len(parts)))
	return append(out, headers...)
}

// compressed returns data as a compressed section holds it.
func compressed(t testing.TB, kind uint32, size uint64, data []byte) []byte {
	t.Helper()
	out := bytes.NewBuffer(make([]byte, compressHeader))
	if kind == compressedZlib {
		z := zlib.NewWriter(out)
		z.Write(data)
		z.Close()
	} else {
		z, err := zstd.NewWriter(out)
		if err != nil {
			t.Fatal(err)
		}
		z.Write(data)
		z.Close()
	}
	binary.LittleEndian.PutUint32(out.Bytes(), kind)
	binary.LittleEndian.PutUint64(out.Bytes()[8:], size)
	return out.Bytes()
}

func sample(t testing.TB) []byte {
	text := []byte("text that lies in the file")
	return build(
		part{name: ".text", kind: 1, flags: flagAllocated | flagCode, addr: 0x1000, data: text},
		part{name: ".data", kind: 1, flags: flagAllocated | flagWrite, addr: 0x2000, link: 1, data: []byte("data")},
		part{name: ".bss", kind: sectionNoBits, flags: flagAllocated | flagWrite, addr: 0x3000, data: []byte("void")},
		part{name: ".rodata", kind: 1, flags: flagAllocated, addr: 0x4000, link: 99, data: []byte("constant")},
		part{name: ".zlib", kind: 1, flags: flagCompressed, data: compressed(t, compressedZlib, 26, text)},
		part{name: ".zstd", kind: 1, flags: flagCompressed, data: compressed(t, compressedZstd, 26, text)},
		part{name: ".short", kind: 1, flags: flagCompressed, data: compressed(t, compressedZstd, 25, text)},
		part{name: ".long", kind: 1, flags: flagCompressed, data: compressed(t, compressedZlib, 27, text)},
		part{name: ".huge", kind: 1, flags: flagCompressed, data: compressed(t, compressedZlib, 1<<60, text)},
		part{name: ".strange", kind: 1, flags: flagCompressed, data: compressed(t, 77, 26, text)},
		part{name: ".tiny", kind: 1, flags: flagCompressed, data: text[:10]},
	)
}

func write(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSections(t *testing.T) {
	f, err := Open(write(t, sample(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, want := range map[string]string{
		".text": "text that lies in the file", ".rodata": "constant",
		".zlib": "text that lies in the file", ".zstd": "text that lies in the file",
	} {
		s := f.Section(name)
		if s == nil {
			t.Errorf("no section %s", name)
			continue
		}
		if b, err := f.Data(s, 100); string(b) != want || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if b, err := f.Data(s, uint64(len(want)-1)); b != nil || err == nil {
			t.Errorf("%s within less than it has: %q", name, b)
		}
		b, unmap, err := f.Map(s)
		if string(b) != want || err != nil {
			t.Errorf("%s mapped: %q, %v", name, b, err)
		}
		if unmap != nil {
			unmap()
		}
	}
	for _, name := range []string{".short", ".long", ".huge", ".strange", ".tiny"} {
		if b, err := f.Data(f.Section(name), 100); b != nil || err == nil {
			t.Errorf("%s: %q", name, b)
		}
	}
	if s := f.Section(".bss"); s != nil {
		t.Errorf("%+v has nothing in the file", s)
	}
	if s := f.Section(".nosuch"); s != nil {
		t.Errorf("%+v", s)
	}
	for i, want := range "TDBR" {
		if s := f.Numbered(i + 1); s == nil || s.Letter() != byte(want) || !s.Loaded() {
			t.Errorf("section %d: %+v", i+1, s)
		}
	}
	if f.Numbered(0) != nil || f.Numbered(-1) != nil || f.Numbered(99) != nil || f.Numbered(5).Loaded() {
		t.Error("sections by number")
	}
	if s, err := f.Linked(f.Section(".data")); err != nil || s.Name != ".text" {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := f.Linked(f.Section(".rodata")); !errors.Is(err, ErrNoSection) {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestAt(t *testing.T) {
	f, err := Open(write(t, sample(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		addr, n uint64
		want    string
	}{{0x1000, 4, "text"}, {0x1005, 4, "that"}, {0x4003, 100, "stant"}} {
		if b, err := f.At(c.addr, c.n); string(b) != c.want || err != nil {
			t.Errorf("%#x: %q, %v", c.addr, b, err)
		}
	}
	for _, addr := range []uint64{0, 0xfff, 0x101a, 0x3000, ^uint64(0)} {
		if b, err := f.At(addr, 4); b != nil || err == nil {
			t.Errorf("%#x: %q", addr, b)
		}
	}
}

// TestNotELF opens what is not a kernel.
func TestNotELF(t *testing.T) {
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		change func(b []byte) []byte
		want   string
	}{
		"empty":        {func(b []byte) []byte { return nil }, "begin"},
		"short":        {func(b []byte) []byte { return b[:63] }, "begin"},
		"32 bits":      {func(b []byte) []byte { b[4] = 1; return b }, "64 bits"},
		"big-endian":   {func(b []byte) []byte { b[5] = 2; return b }, "64 bits"},
		"arm64":        {func(b []byte) []byte { b[18] = 183; return b }, "machine 183"},
		"object":       {func(b []byte) []byte { b[16] = 1; return b }, "a module"},
		"core":         {func(b []byte) []byte { b[16] = 4; return b }, "type 4"},
		"no sections":  {func(b []byte) []byte { b[60] = 0; return b }, "0 sections"},
		"all sections": {func(b []byte) []byte { le.PutUint16(b[60:], 0xffff); return b }, "65535 sections"},
		"table off":    {func(b []byte) []byte { le.PutUint64(b[40:], 1<<63); return b }, "section table"},
		"table wraps":  {func(b []byte) []byte { le.PutUint64(b[40:], ^uint64(0)-10); return b }, "section table"},
		"names":        {func(b []byte) []byte { b[62] = 200; return b }, "name"},
		"entry size":   {func(b []byte) []byte { b[58] = 40; return b }, "40 bytes"},
		"bzImage": {func([]byte) []byte {
			b := make([]byte, 1024)
			copy(b[bootMagicAt:], "HdrS")
			return b
		}, "taken out"},
	} {
		f, err := Open(write(t, c.change(sample(t))))
		if !errors.Is(err, ErrNotELF) || f != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f, err := Open(t.TempDir()); !errors.Is(err, ErrNotELF) || f != nil {
		t.Errorf("a directory: %v", err)
	}
	if f, err := Open("/nonexistent"); !errors.Is(err, os.ErrNotExist) || f != nil {
		t.Errorf("no file: %v", err)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := Open(pipe); !errors.Is(err, ErrNotELF) || f != nil {
		t.Errorf("a pipe: %v", err)
	}
}

// TestBomb opens small files that promise much.
func TestBomb(t *testing.T) {
	zeros := compressed(t, compressedZlib, 1<<29, make([]byte, 1<<20))
	f, err := Open(write(t, build(part{name: ".a", kind: 1, flags: flagCompressed, data: zeros})))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if b, err := f.Data(f.Section(".a"), 1<<30); b != nil || err == nil {
		t.Errorf("%d bytes", len(b))
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
		t.Errorf("%d bytes allocated for 1 MB", n)
	}
}

// TestCompiler reads what a compiler made.
func TestCompiler(t *testing.T) {
	out := filepath.Join(t.TempDir(), "a.out")
	cmd := exec.Command("gcc", "-xc", "-o", out, "-")
	cmd.Stdin = strings.NewReader("const char banner[] = \"this is it\"; int main(void) { return banner[0]; }\n")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, text)
	}
	f, err := Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := f.Data(f.Section(".rodata"), 1<<20)
	if err != nil || !bytes.Contains(b, []byte("this is it\x00")) {
		t.Errorf("%q, %v", b, err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(sample(f))
	f.Add(build())
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := New(bytes.NewReader(data), int64(len(data)))
		if (e == nil) != (err != nil) {
			t.Fatalf("%v, %v", e, err)
		}
		if err != nil {
			return
		}
		for i := range e.sections {
			s := &e.sections[i]
			b, err := e.Data(s, 1<<16)
			if (b == nil) != (err != nil) || len(b) > 1<<16 {
				t.Fatalf("%+v: %d bytes, %v", s, len(b), err)
			}
			if b, err := e.At(s.Addr, 100); (b == nil) != (err != nil) || len(b) > 100 {
				t.Fatalf("%+v: %d bytes, %v", s, len(b), err)
			}
			_, _ = e.Linked(s)
			_ = s.Letter()
		}
	})
}
