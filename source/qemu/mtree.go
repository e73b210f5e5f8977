package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/umbravm/umbra/mem"
)

// maxFlatRanges bounds the ranges taken from a flat view. A machine with dozens
// of DIMMs has fewer than 200.
const maxFlatRanges = 1 << 14

// flatRange is one line of a flat view: guest-physical addresses that one memory
// region of QEMU answers for.
type flatRange struct {
	mem.Extent
	kind   string // "ram", "rom", "nv-ram", "i/o", …
	name   string // the memory region's
	offset uint64 // where in the region the range starts, in bytes
}

// parseFlatView returns what the address space "memory", which is what the CPUs
// see outside system management mode, holds in the output of the monitor command
// "info mtree -f" (softmmu/memory.c, mtree_print_flatview), ascending.
func parseFlatView(text string) ([]flatRange, error) {
	var ranges []flatRange
	inView, found := false, false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "FlatView"):
			if found {
				return ranges, nil
			}
			inView = false
		case strings.HasPrefix(line, ` AS "memory",`):
			inView, found = true, true
		case inView && strings.HasPrefix(line, "  0"):
			r, err := parseFlatRange(line)
			if err != nil {
				return nil, err
			}
			if n := len(ranges); n > 0 && r.Start <= ranges[n-1].End()-1 {
				return nil, fmt.Errorf("flat view: %v is out of order", r.Start)
			}
			if len(ranges) == maxFlatRanges {
				return nil, fmt.Errorf("flat view: more than %d ranges", maxFlatRanges)
			}
			ranges = append(ranges, r)
		}
	}
	if len(ranges) == 0 {
		return nil, fmt.Errorf("flat view: no address space \"memory\" in %d bytes", len(text))
	}
	return ranges, nil
}

// parseFlatRange reads "  START-LAST (prio N, KIND): NAME[ @OFFSET][ KVM]".
func parseFlatRange(line string) (flatRange, error) {
	bad := func() (flatRange, error) { return flatRange{}, fmt.Errorf("flat view: malformed line %q", line) }
	addrs, rest, ok := strings.Cut(strings.TrimSpace(line), " (prio ")
	first, last, ok2 := strings.Cut(addrs, "-")
	_, rest, ok3 := strings.Cut(rest, ", ")
	kind, name, ok4 := strings.Cut(rest, "): ")
	if !ok || !ok2 || !ok3 || !ok4 {
		return bad()
	}
	start, err := strconv.ParseUint(first, 16, 64)
	if err != nil {
		return bad()
	}
	end, err := strconv.ParseUint(last, 16, 64)
	if err != nil || end < start || end-start == 1<<64-1 {
		return bad()
	}
	r := flatRange{Extent: mem.Extent{Start: mem.Phys(start), Size: end - start + 1}, kind: kind}
	r.name = strings.TrimSuffix(name, " KVM")
	if i := strings.LastIndex(r.name, " @"); i >= 0 {
		if r.offset, err = strconv.ParseUint(r.name[i+2:], 16, 64); err != nil {
			return bad()
		}
		r.name = r.name[:i]
	}
	return r, nil
}

// backed tells whether memory stands behind the range, writable by the guest now
// or not (the shadowed BIOS area is switched to read-only).
func (r flatRange) backed() bool {
	return r.kind == "ram" || r.kind == "rom" || r.kind == "nv-ram" || r.kind == "nv-rom"
}
