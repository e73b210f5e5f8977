package ksym

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/umbravm/umbra/mem"
)

// TestLookAlikes searches images a guest filled with pieces of tables: the search
// ends, with an error, having read no more than a bounded multiple of the image.
func TestLookAlikes(t *testing.T) {
	real, loc, _ := testImage(layouts[7])
	piece := func(from, to mem.Virt) []byte { return real.bytes[from-real.base : to-real.base] }
	tokens := piece(loc.TokenTable, loc.Offsets)
	tables := piece(loc.NumSyms, loc.Offsets)
	steps := make([]byte, 0, 64<<10)
	for i := range uint32(16 << 10) {
		steps = binary.LittleEndian.AppendUint32(steps, i%9*600)
	}
	counts := bytes.Repeat([]byte{byte(testSymbols & 0xff), testSymbols >> 8, 0, 0}, 1<<15)
	for name, fill := range map[string][]byte{
		"anchors":                     anchor,
		"token tables":                append(bytes.Clone(tokens), 0, 0, 0, 0),
		"tables without addresses":    append(bytes.Clone(tables), 0, 0, 0, 0),
		"markers before token tables": append(append(steps, 0, 0, 0, 0), tokens...),
		"counts before markers":       append(append(bytes.Clone(counts), steps...), tokens...),
		"zeros":                       {0},
		"ones":                        {0xff},
		"one-byte names":              {1},
	} {
		t.Run(name, func(t *testing.T) {
			img := &memImage{base: synthBase, bytes: bytes.Repeat(fill, (8<<20)/len(fill))}
			table, err := Find(img)
			if table != nil || !errors.Is(err, ErrNotFound) {
				t.Fatalf("%v, %v", table, err)
			}
			t.Logf("%d reads: %v", img.reads, err)
			if img.reads > 100_000 {
				t.Errorf("%d reads", img.reads)
			}
		})
	}
}

// TestAmbiguous gives one set of names two address tables that both make sense.
func TestAmbiguous(t *testing.T) {
	l := layouts[6] // relative to a base, behind the tokens
	syms := synthSymbols(l, minSymbols, testSize, 7)
	img, loc := synth(l, syms, testSize, 7)
	if _, err := Find(img); err != nil {
		t.Fatal(err)
	}
	// A second one where kernels before 6.5 have it, in front of the count.
	end := loc.NumSyms - 8 - img.base
	binary.LittleEndian.PutUint64(img.bytes[end:], uint64(img.base))
	copy(img.bytes[end-4*minSymbols:], encodeAddresses(l, syms, 0))
	table, err := Find(img)
	if table != nil || !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrMalformed) {
		t.Errorf("%v, %v", table, err)
	}
}

// TestBadImages are images of impossible places and sizes.
func TestBadImages(t *testing.T) {
	for _, img := range []*memImage{
		{base: synthBase},
		{base: synthBase + 1, bytes: make([]byte, 4096)},
		{base: ^mem.Virt(0) - 4095, bytes: make([]byte, 8192)},
	} {
		if table, err := Find(img); table != nil || err == nil {
			t.Errorf("image at %v, %d bytes: %v, %v", img.base, len(img.bytes), table, err)
		}
		if table, err := Load(img, Locations{}); table != nil || err == nil {
			t.Errorf("image at %v, %d bytes: %v, %v", img.base, len(img.bytes), table, err)
		}
	}
}
