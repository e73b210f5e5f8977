package ksym

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/umbravm/umbra/mem"
)

// cut makes TestGuests write the fixtures.
var cut = flag.Bool("cut", false, "write the tables of the guests booted to testdata")

// fixtures are the tables of Debian kernels as they lay in a guest's memory, with
// nothing around them. What is expected of them was compared with that guest's
// own /proc/kallsyms when they were cut (TestGuests). In the file, a line with
// the image's base and size and the tables' offset goes before the bytes. Smaller
// with zstd --ultra -22.
var fixtures = []struct {
	release  string
	encoding Encoding
	symbols  int
	sum      string // SHA-256 of what listing writes
}{
	{"5.10.0-46-cloud-amd64", PercpuAbsolute, 97254, "a57103c24301150b338a34f91a8e0223b00dd751440338f3150ee3921189a042"},
	{"6.1.0-50-cloud-amd64", PercpuAbsolute, 87182, "4117daf70980364b8f501aaae922da68d9d5957fa9fdacdaac16669d2d5b995e"},
	{"7.2.13+deb14-cloud-amd64", PCRelative, 186798, "675b23aa2e7d7e007cd38c1a5b54933626128d68a26abc7a1d24f2123014f11a"},
}

// listing is the symbols as lines of /proc/kallsyms, without KASLR.
func listing(table *Table) string {
	text, _ := table.Lookup("_text")
	h := sha256.New()
	w := bufio.NewWriter(h)
	for s := range table.All() {
		if s.Addr >= kernelHalf {
			s.Addr += synthBase - text
		}
		fmt.Fprintf(w, "%016x %c %s\n", uint64(s.Addr), s.Type, s.Name)
	}
	w.Flush()
	return fmt.Sprintf("%x", h.Sum(nil))
}

// checkFixture compares a guest's table with the fixture of its release, where
// there is one, or writes that.
func checkFixture(t *testing.T, release string, table *Table, img Image) {
	t.Helper()
	for _, f := range fixtures {
		if f.release != release {
			continue
		}
		if *cut {
			writeFixture(t, release, table, img)
			t.Logf("%q, %d, %q", release, table.Len(), listing(table))
			return
		}
		if table.Len() != f.symbols || listing(table) != f.sum {
			t.Errorf("%d symbols, sum %s: differs from the fixture", table.Len(), listing(table))
		}
	}
}

func fixturePath(release string) string {
	return filepath.Join("testdata", release+".tables.zst")
}

func writeFixture(t *testing.T, release string, table *Table, img Image) {
	t.Helper()
	lo, hi := table.extent()
	b := make([]byte, hi-lo)
	if _, err := img.ReadAt(b, int64(lo-img.Base())); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(z, "%#x %#x %#x\n", uint64(img.Base()), img.Size(), uint64(lo-img.Base()))
	z.Write(b)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fixturePath(release), out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// cutImage is an image of which only a piece can be read.
type cutImage struct {
	base  mem.Virt
	size  uint64
	start int64
	bytes []byte
	reads int
}

func (c *cutImage) Base() mem.Virt { return c.base }
func (c *cutImage) Size() uint64   { return c.size }
func (c *cutImage) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	if off < c.start || off >= c.start+int64(len(c.bytes)) {
		return 0, errors.New("not in the fixture")
	}
	n := copy(p, c.bytes[off-c.start:])
	if n < len(p) {
		return n, errors.New("not in the fixture")
	}
	return n, nil
}

func readFixture(t testing.TB, release string) *cutImage {
	t.Helper()
	f, err := os.Open(fixturePath(release))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := strings.Cut(string(b), "\n")
	img := &cutImage{bytes: []byte(body)}
	if _, err := fmt.Sscanf(head, "%v %v %v", (*uint64)(&img.base), &img.size, &img.start); err != nil {
		t.Fatal(err)
	}
	// Memory comes in whole pages.
	before := img.start % mem.PageSize
	img.start -= before
	img.bytes = slices.Concat(make([]byte, before), img.bytes, make([]byte, mem.PageSize))
	return img
}

func TestFixtures(t *testing.T) {
	for _, f := range fixtures {
		t.Run(f.release, func(t *testing.T) {
			img := readFixture(t, f.release)
			table, err := Find(img)
			if err != nil {
				t.Fatal(err)
			}
			if table.Encoding() != f.encoding || table.Len() != f.symbols {
				t.Errorf("%d symbols, addresses %v, want %d, %v", table.Len(), table.Encoding(), f.symbols, f.encoding)
			}
			if sum := listing(table); sum != f.sum {
				t.Errorf("the listing's sum is %s, want %s", sum, f.sum)
			}
			again, err := Load(img, table.Locations())
			if err != nil {
				t.Fatal(err)
			}
			if again.Digest() != table.Digest() {
				t.Error("found and loaded tables have different digests")
			}
		})
	}
}

func BenchmarkFind(b *testing.B) {
	for _, f := range fixtures {
		b.Run(f.release, func(b *testing.B) {
			img := readFixture(b, f.release)
			whole := &memImage{base: img.base, bytes: make([]byte, img.size)}
			for i := range whole.bytes {
				whole.bytes[i] = byte(i * i >> 3)
			}
			copy(whole.bytes[img.start:], img.bytes)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Find(whole); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, f := range fixtures {
		b.Run(f.release, func(b *testing.B) {
			img := readFixture(b, f.release)
			table, err := Find(img)
			if err != nil {
				b.Fatal(err)
			}
			loc := table.Locations()
			b.ReportAllocs()
			for b.Loop() {
				t, err := Load(img, loc)
				if err != nil {
					b.Fatal(err)
				}
				if _, ok := t.Lookup("init_task"); !ok { // indexes it
					b.Fatal("no init_task")
				}
			}
		})
	}
}

func BenchmarkDigest(b *testing.B) {
	table, err := Find(readFixture(b, fixtures[2].release))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		table.Digest()
	}
}

func BenchmarkLookup(b *testing.B) {
	table, err := Find(readFixture(b, fixtures[2].release))
	if err != nil {
		b.Fatal(err)
	}
	var names []string
	for s := range table.All() {
		if len(names) < 1<<12 && s.Addr%7 == 0 {
			names = append(names, s.Name)
		}
	}
	table.Lookup("init_task")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, ok := table.Lookup(names[i%len(names)]); !ok {
			b.Fatal(names[i%len(names)])
		}
	}
}
