package dump

import (
	"encoding/binary"
	"fmt"

	"github.com/umbravm/umbra/mem"
)

// The LiME format, version 1: for each run of RAM a header of 32 bytes (magic
// and version, 32 bits each; first and last address, 64 bits each; 8 reserved
// bytes), then its bytes. All little-endian.
const (
	limeMagic     = 0x4c694d45
	limeVersion   = 1
	limeHeader    = 32
	maxLimeRanges = maxRuns
)

func isLiME(magic []byte) bool {
	return len(magic) >= 4 && binary.LittleEndian.Uint32(magic) == limeMagic
}

func openLiME(st storage) (*segments, error) {
	le := binary.LittleEndian
	var runs []segment
	var extents []mem.Extent
	var head [limeHeader]byte
	lost := uint64(0) // of a header that is cut off
	for at := uint64(0); at < uint64(st.size()); {
		if n, err := readFull(st, head[:], int64(at)); err != nil {
			if n == 0 || len(runs) == 0 {
				return nil, fmt.Errorf("the LiME header at offset %#x: %w", at, err)
			}
			lost = uint64(limeHeader - n)
			break
		}
		first, last := le.Uint64(head[8:]), le.Uint64(head[16:])
		if m, v := le.Uint32(head[:]), le.Uint32(head[4:]); m != limeMagic || v != limeVersion {
			return nil, fmt.Errorf("%w: LiME header at offset %#x has magic %#x and version %d, want %#x and %d",
				ErrFormat, at, m, v, uint32(limeMagic), limeVersion)
		}
		if last < first || last-first >= 1<<62 {
			return nil, fmt.Errorf("%w: LiME header at offset %#x has addresses %#x to %#x", ErrFormat, at, first, last)
		}
		if len(runs) == maxLimeRanges {
			return nil, fmt.Errorf("%w: more than %d LiME ranges", ErrFormat, maxLimeRanges)
		}
		g := segment{start: mem.Phys(first), size: last - first + 1, off: at + limeHeader}
		if err := g.check(); err != nil {
			return nil, err
		}
		runs = append(runs, g)
		extents = append(extents, mem.Extent{Start: g.start, Size: g.size})
		at = g.off + g.size
	}
	if _, err := mem.NewLayout(extents...); err != nil {
		return nil, fmt.Errorf("%w: LiME ranges: %w", ErrFormat, err)
	}
	s, err := newSegments(st, "LiME", runs, nil)
	if err != nil {
		return nil, err
	}
	s.absent += lost
	return s, nil
}
