package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/mem"
)

// limeRange is one range as LiME writes it: the last address is inclusive.
func limeRange(first uint64, data []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x4c694d45)
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = binary.LittleEndian.AppendUint64(b, first)
	b = binary.LittleEndian.AppendUint64(b, first+uint64(len(data))-1)
	return append(append(b, make([]byte, 8)...), data...)
}

func TestLiME(t *testing.T) {
	data := testData()
	// The first is what LiME writes for low memory: it need not be whole pages.
	b := append(limeRange(0x1000, data[:0x9bc00-0x91000]), limeRange(0x100000, data[0x2000:0x6000])...)
	b = append(b, limeRange(0x104000, data[0x6000:0x8000])...)
	s := open(t, writeFile(t, b), Options{})
	want := mem.Layout{{Start: 0x1000, Size: 0xac00}, {Start: 0x100000, Size: 0x6000}}
	if got := s.Info().Layout; !slices.Equal(got, want) {
		t.Errorf("layout = %v, want %v", got, want)
	}
	if got := readAll(t, s, 0x100000, 0x6000); !bytes.Equal(got, data[0x2000:0x8000]) {
		t.Error("the upper range, in two pieces, differs")
	}
	buf := make([]byte, mem.PageSize)
	n, err := mem.Gather(context.Background(), s, 0xb000, buf)
	if n != 0xc00 || !errors.Is(err, mem.ErrNotRAM) || !bytes.Equal(buf[:n], data[0xa000:0xac00]) {
		t.Errorf("read across the end of a range = %d, %v", n, err)
	}
	if _, err := s.Registers(context.Background()); !errors.Is(err, ErrNoRegisters) {
		t.Errorf("registers: %v", err)
	}

	cut := open(t, writeFile(t, b[:len(b)-100]), Options{})
	if n := cut.Missing(); n != 100 {
		t.Errorf("missing = %d, want 100", n)
	}
	n, err = mem.Gather(context.Background(), cut, 0x105000, buf)
	if n != mem.PageSize-100 || !errors.Is(err, ErrTruncated) {
		t.Errorf("read behind the cut = %d, %v", n, err)
	}

	for name, bad := range map[string][]byte{
		"overlap":  append(limeRange(0x1000, data[:0x2000]), limeRange(0x2000, data[:0x2000])...),
		"rest":     append(slices.Clone(b), make([]byte, 64)...),
		"version":  append([]byte("EMiL\x02\x00\x00\x00"), b[8:]...),
		"inverted": limeRange(0, nil),
	} {
		if _, err := Open(context.Background(), writeFile(t, bad), Options{}); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRawLayout(t *testing.T) {
	data := testData()
	path := writeFile(t, data)
	if _, err := Open(context.Background(), path, Options{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "raw") {
		t.Errorf("raw memory must be named: %v", err)
	}
	s := open(t, path, Options{Format: Raw})
	if got := readAll(t, s, 0, len(data)); !bytes.Equal(got, data) {
		t.Error("flat memory differs")
	}

	layout, err := ParseLayout("0x100000000-0x100008000,0-0x8000")
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{Layout: layout})
	if got := readAll(t, s, 1<<32, 0x8000); !bytes.Equal(got, data[:0x8000]) {
		t.Error("the first range differs")
	}
	if got := readAll(t, s, 0, 0x8000); !bytes.Equal(got, data[0x8000:]) {
		t.Error("the second range differs")
	}
	if got := FormatLayout(layout); got != "0x100000000-0x100008000,0x0-0x8000" {
		t.Errorf("layout = %s", got)
	}
	for _, bad := range []string{"", "5", "5-5", "6-5", "0-10,5-20", "0-x", "0-0x10000000000000000", "-5"} {
		if l, err := ParseLayout(bad); err == nil {
			t.Errorf("layout %q = %v", bad, l)
		}
	}
	if _, err := Open(context.Background(), path, Options{Layout: layout[:1]}); !errors.Is(err, ErrFormat) {
		t.Errorf("a layout shorter than the file: %v", err)
	}
	longer := []mem.Extent{{Size: uint64(len(data)) + 0x1000}}
	s = open(t, path, Options{Layout: longer})
	if n, err := mem.Gather(context.Background(), s, mem.Phys(len(data)-8), make([]byte, 16)); n != 8 || !errors.Is(err, ErrTruncated) || s.Missing() != 0x1000 {
		t.Errorf("read behind the end = %d, %v; missing %d", n, err, s.Missing())
	}
}

func TestShrinkingFile(t *testing.T) {
	path := writeFile(t, testData())
	s := open(t, path, Options{Format: Raw})
	if err := os.Truncate(path, 0x1800); err != nil {
		t.Fatal(err)
	}
	n, err := mem.Gather(context.Background(), s, 0x1000, make([]byte, mem.PageSize))
	var fault *mem.Fault
	if n != 0x800 || !errors.Is(err, ErrTruncated) || !errors.As(err, &fault) || fault.Addr != 0x1800 {
		t.Errorf("read of a file that shrank = %d, %v", n, err)
	}
}

func TestSparseFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size, at = 64 << 30, 48 << 30
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("umbra"), at); err != nil {
		t.Fatal(err)
	}
	s := open(t, path, Options{Layout: []mem.Extent{{Size: 3 << 30}, {Start: 4 << 30, Size: 61 << 30}}})
	e, ok := s.Data(0)
	if !ok || e.Start > at+1<<30 || e.End() <= at+1<<30 || e.Size > 1<<20 {
		t.Fatalf("data = %v, %v; want the one page at %#x", e, ok, uint64(at+1<<30))
	}
	if e, ok := s.Data(e.End()); ok {
		t.Errorf("more data: %v", e)
	}
	if got := readAll(t, s, at+1<<30, 5); string(got) != "umbra" {
		t.Errorf("read %q", got)
	}
}

func TestWrongFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "no such file",
		dir:                        "it is no regular file",
		fifo:                       "it is no regular file",
		exe:                        "a core file is type 4",
		writeFile(t, nil):          "the file has 0 bytes",
		writeFile(t, []byte("#!/bin/sh\necho this is no dump\n")):         "looked for an ELF core",
		writeFile(t, []byte("QFI\xfb\x00\x00\x00\x03aaaaaaaaaaaaaaaaaa")): "qcow2",
		writeFile(t, []byte("PAGEDU64aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")):   "Windows",
		writeFile(t, []byte("AVML\x02\x00\x00\x00aaaaaaaaaaaaaaaaaaa")):   "avml-convert",
		writeFile(t, []byte(flatMagic)):                                   "ends before",
	} {
		_, err := Open(context.Background(), path, Options{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), path) != 1 {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	m := testMachine(t)
	if _, err := Open(context.Background(), m.file("elf"), Options{Format: Kdump}); err == nil || !strings.Contains(err.Error(), "this is elf") {
		t.Errorf("elf opened as kdump: %v", err)
	}
	if _, err := Open(context.Background(), m.file("elf"), Options{Format: ELF, Layout: []mem.Extent{{Size: 1}}}); err == nil {
		t.Error("a layout for a file that has its own was taken")
	}
}
