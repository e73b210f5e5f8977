package ksym

import (
	"encoding/binary"

	"github.com/umbravm/umbra/mem"
)

// The address table is the largest thing in a kernel that ascends so evenly, 400
// KB and more, so looking at a page in every sampleStep leads to it without
// reading the image: a few hundred KB instead of tens of MB.
const (
	sampleStep = 128 << 10
	// How far from a page of the address table its token table can begin: just
	// before the table since 6.5; before that behind it and the names.
	sampleBefore = 2 << 20
	sampleAfter  = 6 << 20
)

// sample scans around pages that look like part of an address table.
func (f *finder) sample() error {
	var buf [mem.PageSize]byte
	end := f.base + mem.Virt(f.size)
	covered := f.base
	for off := uint64(0); off < f.size; off += sampleStep {
		at := f.base + mem.Virt(off)
		p := f.readUpTo(buf[:], at)
		if len(p) < len(buf) || !looksSorted(p) {
			continue
		}
		lo := max(covered, f.base+mem.Virt(max(off, sampleBefore)-sampleBefore))
		covered = end
		if f.size-off > sampleAfter {
			covered = at + sampleAfter
		}
		if err := f.scan(lo, covered); err != nil || f.found != nil {
			return err
		}
	}
	return nil
}

// looksSorted tells whether a page could be part of an address table in one of
// the 32-bit encodings: 1024 values that ascend, or descend below zero, or
// ascend when each counts from its own place; in small steps, and uneven ones:
// zeros and counting ascend, too.
func looksSorted(p []byte) bool {
	const maxStep = 1 << 20
	up, down, self := true, true, true
	uneven := 0
	prev, before := binary.LittleEndian.Uint32(p), int32(0)
	for i := 4; i < len(p); i += 4 {
		x := binary.LittleEndian.Uint32(p[i:])
		step := int32(x - prev)
		up = up && step >= 0 && step <= maxStep
		down = down && step <= 0 && step >= -maxStep
		self = self && step >= -4 && step <= maxStep
		if !up && !down && !self {
			return false
		}
		if step != before {
			uneven++
		}
		prev, before = x, step
	}
	return uneven > len(p)/4/4
}
