package dump

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/umbravm/umbra/mem"
)

// ParseLayout decodes a list of address ranges, as the flag --layout takes them:
// "0-0x80000000,0x100000000-0x180000000". Ends are exclusive. The order is that
// of the file.
func ParseLayout(s string) ([]mem.Extent, error) {
	var out []mem.Extent
	for _, part := range strings.Split(s, ",") {
		from, to, ok := strings.Cut(strings.TrimSpace(part), "-")
		start, err1 := strconv.ParseUint(from, 0, 64)
		end, err2 := strconv.ParseUint(to, 0, 64)
		if !ok || err1 != nil || err2 != nil || end <= start {
			return nil, fmt.Errorf("layout %q: %q is not a range START-END", s, part)
		}
		out = append(out, mem.Extent{Start: mem.Phys(start), Size: end - start})
	}
	if _, err := mem.NewLayout(out...); err != nil {
		return nil, fmt.Errorf("layout %q: %w", s, err)
	}
	return out, nil
}

// FormatLayout is ParseLayout's inverse.
func FormatLayout(extents []mem.Extent) string {
	parts := make([]string, len(extents))
	for i, e := range extents {
		parts[i] = fmt.Sprintf("%#x-%#x", uint64(e.Start), uint64(e.Start)+e.Size)
	}
	return strings.Join(parts, ",")
}

// openRaw lays the file over layout, or from address 0 on. The layout must have
// the file's size: were the file longer, what its rest is would be anyone's
// guess. A shorter one is truncated.
func openRaw(st storage, layout []mem.Extent) (*segments, error) {
	size := uint64(st.size())
	if layout == nil {
		layout = []mem.Extent{{Size: size}}
	}
	var runs []segment
	var off uint64
	for _, e := range layout {
		runs = append(runs, segment{start: e.Start, size: e.Size, off: off})
		off += e.Size
	}
	if _, err := mem.NewLayout(layout...); err != nil {
		return nil, fmt.Errorf("layout: %w", err)
	}
	if size > off {
		return nil, fmt.Errorf("%w: the file has %#x bytes, the layout %#x", ErrFormat, size, off)
	}
	return newSegments(st, "raw memory", runs, nil)
}
