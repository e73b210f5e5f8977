package ksym

import (
	"slices"
	"testing"

	"github.com/umbravm/umbra/mem"
)

// fuzzSize is large enough for the smallest table there may be.
const fuzzSize = 192 << 10

func fuzzSeeds() ([]*memImage, []Locations) {
	var images []*memImage
	var locations []Locations
	for _, l := range layouts {
		img, loc := synth(l, synthSymbols(l, minSymbols, fuzzSize, 5), fuzzSize, 5)
		images, locations = append(images, img), append(locations, loc)
	}
	return images, locations
}

// patch is an image with bytes changed: each of edits is an offset of 24 bits and
// a byte to add. So a fuzzer's input is small, and what it mutates is a real table.
func patch(img *memImage, edits []byte) *memImage {
	c := img.clone()
	for ; len(edits) >= 4; edits = edits[4:] {
		at := (int(edits[0]) | int(edits[1])<<8 | int(edits[2])<<16) % len(c.bytes)
		c.bytes[at] += edits[3]
	}
	return c
}

// edit is one of patch's edits.
func edit(img *memImage, a mem.Virt, add byte) []byte {
	off := int(a - img.base)
	return []byte{byte(off), byte(off >> 8), byte(off >> 16), add}
}

func addSeeds(f *testing.F, images []*memImage, locations []Locations) {
	for i, img := range images {
		l := locations[i]
		f.Add(byte(i), []byte{})
		f.Add(byte(i), edit(img, l.NumSyms+1, 1))
		f.Add(byte(i), edit(img, l.Names, 0x80))
		f.Add(byte(i), edit(img, l.TokenTable+3, 7))
		f.Add(byte(i), slices.Concat(edit(img, l.TokenIndex+2, 1), edit(img, l.Markers+4, 1)))
		f.Add(byte(i), edit(img, max(l.Offsets, l.Addresses)+402, 0x80))
	}
}

func FuzzLoad(f *testing.F) {
	images, locations := fuzzSeeds()
	addSeeds(f, images, locations)
	f.Fuzz(func(t *testing.T, which byte, edits []byte) {
		i := int(which) % len(images)
		table, err := Load(patch(images[i], edits), locations[i])
		checkOutcome(t, table, err)
		if len(edits) < 4 && err != nil {
			t.Fatalf("an intact table: %v", err)
		}
	})
}

func FuzzFind(f *testing.F) {
	images, locations := fuzzSeeds()
	addSeeds(f, images, locations)
	f.Fuzz(func(t *testing.T, which byte, edits []byte) {
		i := int(which) % len(images)
		table, err := Find(patch(images[i], edits))
		checkOutcome(t, table, err)
	})
}

// FuzzLocations loads a real table from wrong places.
func FuzzLocations(f *testing.F) {
	images, locations := fuzzSeeds()
	for i := range images {
		f.Add(byte(i), []byte{}, int32(0), int32(0), int32(0), int32(0), int32(0), int32(0))
		f.Add(byte(i), []byte{}, int32(4), int32(8), int32(0), int32(0), int32(0), int32(0))
		f.Add(byte(i), []byte{}, int32(0), int32(0), int32(1), int32(2), int32(-8), int32(1<<30))
	}
	f.Fuzz(func(t *testing.T, which byte, edits []byte, count, names, table, index, addresses, relative int32) {
		i := int(which) % len(images)
		l := locations[i]
		move := func(a *mem.Virt, by int32) { *a += mem.Virt(int64(by)) }
		move(&l.NumSyms, count)
		move(&l.Names, names)
		move(&l.TokenTable, table)
		move(&l.TokenIndex, index)
		move(&l.RelativeBase, relative)
		if l.Addresses != 0 {
			move(&l.Addresses, addresses)
		} else {
			move(&l.Offsets, addresses)
		}
		l.Markers = 0
		got, err := Load(patch(images[i], edits), l)
		checkOutcome(t, got, err)
	})
}
