package mem

import (
	"bytes"
	"errors"
	"testing"
)

func testBundle(t testing.TB) (*Bundle, []byte) {
	t.Helper()
	m := randomRAM(5)
	b := &Bundle{Meta: []byte(`{"name":"x"}`), Pages: map[Phys]BundlePage{
		0x1000: {Data: m.data[:PageSize]},
		0x2000: {Data: make([]byte, PageSize)},
		0x9000: {Data: m.data[PageSize : PageSize+100], Err: ErrNotRAM},
		0xa000: {Err: ErrNotRAM},
	}}
	var buf bytes.Buffer
	if err := b.Encode(&buf); err != nil {
		t.Fatal(err)
	}
	return b, buf.Bytes()
}

func TestBundle(t *testing.T) {
	want, file := testBundle(t)
	got, err := DecodeBundle(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Meta, want.Meta) || len(got.Pages) != len(want.Pages) {
		t.Errorf("got %q and %d pages", got.Meta, len(got.Pages))
	}
	for a, p := range want.Pages {
		g := got.Pages[a]
		if !bytes.Equal(g.Data, p.Data) || !errors.Is(g.Err, p.Err) {
			t.Errorf("page %v: %d bytes, %v", a, len(g.Data), g.Err)
		}
	}
}

// TestBundleDamage cuts the file at every length and flips a bit of every byte:
// none of it may be read as a bundle, but for bits the format does not use.
func TestBundleDamage(t *testing.T) {
	want, file := testBundle(t)
	for n := range file {
		if b, err := DecodeBundle(bytes.NewReader(file[:n])); !errors.Is(err, ErrBundle) || b != nil {
			t.Fatalf("cut at %d of %d: %v", n, len(file), err)
		}
	}
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		b, err := DecodeBundle(bytes.NewReader(bad))
		if err != nil {
			continue
		}
		for a, p := range want.Pages {
			if !bytes.Equal(b.Pages[a].Data, p.Data) {
				t.Fatalf("bit flipped in byte %d: page %v differs without an error", i, a)
			}
		}
	}
}

func FuzzDecodeBundle(f *testing.F) {
	_, file := testBundle(f)
	f.Add(file)
	f.Add(file[:20])
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := DecodeBundle(bytes.NewReader(data))
		if (b == nil) == (err == nil) {
			t.Fatalf("bundle %v, error %v", b, err)
		}
		if err != nil && err.Error() == "" {
			t.Fatal("an error without words")
		}
	})
}
