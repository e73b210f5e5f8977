package qemu

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/umbravm/umbra/internal/qmp"
	"github.com/umbravm/umbra/mem"
)

// askLayout asks a running QEMU where the guest's RAM is: the flat view says which
// guest-physical ranges are RAM, gpa2hva where QEMU has each of them mapped.
func askLayout(ctx context.Context, c *qmp.Client) ([]block, error) {
	text, err := c.HMP(ctx, "info mtree -f")
	if err != nil {
		return nil, err
	}
	ranges, err := parseFlatView(text)
	if err != nil {
		return nil, err
	}
	ids, err := ramBackends(ctx, c)
	if err != nil {
		return nil, err
	}
	var blocks []block
	bases := map[string]uint64{} // a backend is one run of host memory
	for _, r := range ranges {
		if !r.backed() || !ids[path.Base(r.name)] {
			continue
		}
		base, ok := bases[r.name]
		if !ok {
			hva, err := askHost(ctx, c, r)
			if err != nil {
				return nil, err
			}
			base = hva - r.offset
			bases[r.name] = base
		}
		blocks = appendBlock(blocks, block{Extent: r.Extent, hva: base + r.offset})
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%w: QEMU's flat view names no RAM backend", ErrLayout)
	}
	return blocks, nil
}

// appendBlock adds b, joining it to the block before where both continue.
func appendBlock(blocks []block, b block) []block {
	if n := len(blocks); n > 0 {
		last := &blocks[n-1]
		if last.End() == b.Start && last.hva+last.Size == b.hva {
			last.Size += b.Size
			return blocks
		}
	}
	return append(blocks, b)
}

// ramBackends returns the ids of the memory backends that are RAM, as opposed to
// those behind a shared-memory device. ROMs and video memory have no backend.
func ramBackends(ctx context.Context, c *qmp.Client) (map[string]bool, error) {
	var devs []struct {
		ID string `json:"id"`
	}
	if err := c.Execute(ctx, "query-memdev", nil, &devs); err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, d := range devs {
		if d.ID != "" {
			ids[path.Base(d.ID)] = true
		}
	}
	if len(ids) == 0 {
		// Before QEMU 5.0 RAM without an -object had no backend, but this name.
		ids["pc.ram"] = true
	}
	for _, list := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		if err := dropDeviceMemory(ctx, c, list, ids); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// dropDeviceMemory takes the backends of ivshmem devices below list out of ids:
// they appear in the flat view as RAM, inside a PCI BAR.
func dropDeviceMemory(ctx context.Context, c *qmp.Client, list string, ids map[string]bool) error {
	var children []struct{ Name, Type string }
	if err := c.Execute(ctx, "qom-list", map[string]string{"path": list}, &children); err != nil {
		return err
	}
	for _, d := range children {
		if !strings.HasPrefix(d.Type, "child<ivshmem") {
			continue
		}
		var memdev string
		args := map[string]string{"path": list + "/" + d.Name, "property": "memdev"}
		if c.Execute(ctx, "qom-get", args, &memdev) == nil {
			delete(ids, path.Base(memdev))
		}
	}
	return nil
}

// askHost asks for the host-virtual address of r's first byte.
func askHost(ctx context.Context, c *qmp.Client, r flatRange) (uint64, error) {
	out, err := c.HMP(ctx, fmt.Sprintf("gpa2hva %#x", uint64(r.Start)))
	if err != nil {
		return 0, err
	}
	// "Host virtual address for 0x100000 (pc.ram) is 0x7f829bf00000"
	_, addr, ok := strings.Cut(strings.TrimSpace(out), "("+r.name+") is 0x")
	hva, perr := strconv.ParseUint(addr, 16, 64)
	if !ok || perr != nil || hva > 1<<63 || hva+r.Size < hva {
		return 0, fmt.Errorf("RAM at %v: QEMU says %q", r.Start, strings.TrimSpace(out))
	}
	return hva, nil
}

// layoutOf is the guest-physical layout of regions.
func layoutOf(regions []region) (mem.Layout, error) {
	es := make([]mem.Extent, len(regions))
	for i, r := range regions {
		es[i] = r.Extent
	}
	return mem.NewLayout(es...)
}
