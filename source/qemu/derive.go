package qemu

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/umbravm/umbra/mem"
)

const (
	// highMem is where RAM goes on that does not fit below the PCI hole
	// (hw/i386/x86.c: above_4g_mem_start). A guest of more than maxDerived can have
	// it elsewhere, on an AMD CPU.
	highMem    = 4 << 30
	maxDerived = 900 << 30

	// The PC's video and ROM area. Whether RAM or ROM is seen there is the
	// chipset's state, which only QEMU can tell.
	romStart = 0xa0000
	romEnd   = 0x100000

	// ramAlign is the host alignment of private RAM (QEMU_VMALLOC_ALIGN, x86-64).
	ramAlign = 2 << 20
)

// deriveLayout works out the layout of a machine without QMP: from its command
// line and machine type, proved by the ACPI tables QEMU built for the guest.
func (s *Source) deriveLayout(o *opener) ([]block, error) {
	blocks, err := s.cfg.derive(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; ask through QMP (%w)", ErrLayout, err, s.qmpErr)
	}
	return blocks, nil
}

func (c *config) derive(o *opener) ([]block, error) {
	for _, d := range c.devices {
		if k := d.first("driver"); k == "pc-dimm" || k == "nvdimm" || strings.HasPrefix(k, "virtio-mem") || strings.HasPrefix(k, "virtio-pmem") {
			return nil, fmt.Errorf("where its %s device lies is not on its command line", k)
		}
	}
	if c.readConfig {
		return nil, fmt.Errorf("its configuration is in a file")
	}
	low, err := c.lowMemory()
	if err != nil {
		return nil, err
	}
	if err := c.prove(o, low); err != nil {
		return nil, err
	}
	host, err := c.hostRAM(o)
	if err != nil {
		return nil, err
	}
	return place(host, low), nil
}

// lowMemory is how much of the RAM lies below 4 GiB, by the machine type's rule
// (hw/i386/pc_piix.c, pc_q35.c, microvm.c).
func (c *config) lowMemory() (uint64, error) {
	if c.memory > maxDerived {
		return 0, fmt.Errorf("it has more than %d GiB of RAM", maxDerived>>30)
	}
	limit := uint64(highMem)
	if v := c.machineOpts["max-ram-below-4g"]; v != "" {
		n, err := parseSize(v)
		if err != nil {
			return 0, err
		}
		limit = min(limit, n)
	}
	t := c.machine
	switch {
	case t == "microvm":
		return min(c.memory, 3<<30), nil
	case t == "q35" || strings.HasPrefix(t, "pc-q35-"):
		low := uint64(0xb0000000)
		if c.memory >= low {
			low = 2 << 30
		}
		return min(c.memory, low, limit), nil
	case t == "" || t == "pc" || strings.HasPrefix(t, "pc-i440fx-"):
		if limit == highMem {
			limit = 0xe0000000
		}
		if c.memory >= limit {
			limit = min(limit, 3<<30)
		}
		return min(c.memory, limit), nil
	}
	return 0, fmt.Errorf("the machine type %q is not known", t)
}

// prove compares the rule's answer with the machine's ACPI tables. A machine
// without such tables is believed only when all rules agree: its RAM is one run.
func (c *config) prove(o *opener, low uint64) error {
	if err := o.needMemory(); err != nil {
		return err
	}
	windows, err := o.pciWindows()
	if err != nil {
		return err
	}
	if len(windows) == 0 {
		if c.memory == low && low <= 2<<30 {
			return nil
		}
		return fmt.Errorf("it has no ACPI tables to prove where its RAM above %d MiB lies", low>>20)
	}
	return windows.prove(low, c.memory-low, c.slots)
}

// hostRun is RAM in the order in which the guest's RAM is made up of it.
type hostRun struct{ hva, size uint64 }

// hostRAM finds where QEMU has the machine's RAM mapped.
func (c *config) hostRAM(o *opener) ([]hostRun, error) {
	ids := c.numa
	if id := c.machineOpts["memory-backend"]; len(ids) == 0 && id != "" {
		ids = []string{id}
	}
	if len(ids) == 0 {
		hva, err := findPrivate(o.maps, c.memory, nil)
		return []hostRun{{hva, c.memory}}, err
	}
	var runs []hostRun
	var total uint64
	for _, id := range ids {
		i := slices.IndexFunc(c.backends, func(b memBackend) bool { return b.id == id })
		if i < 0 {
			return nil, fmt.Errorf("no memory backend %q on its command line", id)
		}
		b := c.backends[i]
		hva, err := c.findBackend(o.maps, b)
		if err != nil {
			return nil, fmt.Errorf("memory backend %s: %w", id, err)
		}
		runs = append(runs, hostRun{hva, b.size})
		total += b.size
	}
	if total != c.memory {
		return nil, fmt.Errorf("its memory backends have %#x bytes together, its RAM %#x", total, c.memory)
	}
	return runs, nil
}

// findBackend finds the one mapping that can be b's. Two backends that look the
// same in the process's mappings cannot be told apart.
func (c *config) findBackend(maps []mapping, b memBackend) (uint64, error) {
	for _, other := range c.backends {
		if other.id != b.id && other.size == b.size && other.kind == b.kind && other.path == b.path {
			return 0, fmt.Errorf("it looks the same as backend %s", other.id)
		}
	}
	if b.kind == "memory-backend-ram" && !b.share {
		return findPrivate(maps, b.size, c.backends)
	}
	var found []mapping
	for _, m := range coalesce(maps) {
		if m.size() == b.size && m.offset == 0 && m.shared() == b.share && m.writable() && b.mappedAs(m.path) {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("%d mappings can be it", len(found))
	}
	return found[0].start, nil
}

// mappedAs tells whether path, as the kernel shows it, can be the backend's.
func (b memBackend) mappedAs(path string) bool {
	path = strings.TrimSuffix(path, " (deleted)")
	switch b.kind {
	case "memory-backend-memfd":
		return path == "/memfd:memory-backend-memfd"
	case "memory-backend-file":
		// A directory as mem-path means a nameless file inside.
		return path == b.path || filepath.Dir(path) == filepath.Clean(b.path)
	}
	return false
}

// findPrivate finds private RAM of size bytes. QEMU leaves an inaccessible guard
// page behind each block; the kernel may have joined the block with memory before
// it (util/mmap-alloc.c, qemu_ram_mmap).
func findPrivate(maps []mapping, size uint64, others []memBackend) (uint64, error) {
	same := 0
	for _, b := range others {
		if b.kind == "memory-backend-ram" && b.size == size {
			same++
		}
	}
	var exact, joined []uint64
	all := coalesce(maps)
	for i, m := range all {
		if !m.anonymous() || m.perms != "rw-p" || m.size() < size || i+1 == len(all) {
			continue
		}
		guard := all[i+1]
		hva := m.end - size
		if guard.start != m.end || guard.perms != "---p" || hva%ramAlign != 0 && size >= ramAlign {
			continue
		}
		if m.size() == size {
			exact = append(exact, hva)
		} else {
			joined = append(joined, hva)
		}
	}
	switch {
	case same > 1:
		return 0, fmt.Errorf("%d backends have the same size", same)
	case len(exact) == 1:
		return exact[0], nil
	case len(exact) == 0 && len(joined) == 1:
		return joined[0], nil
	}
	return 0, fmt.Errorf("%d mappings can be its private RAM of %d MiB", max(len(exact), len(joined)), size>>20)
}

// coalesce joins neighbouring mappings of one kind that the kernel keeps apart.
func coalesce(maps []mapping) []mapping {
	var out []mapping
	for _, m := range maps {
		if n := len(out); n > 0 {
			last := &out[n-1]
			if last.end == m.start && last.perms == m.perms && last.inode == m.inode && last.dev == m.dev &&
				last.path == m.path && (m.inode == 0 || last.offset+last.size() == m.offset) {
				last.end = m.end
				continue
			}
		}
		out = append(out, m)
	}
	return out
}

// place lays RAM out: the first low bytes from address 0 on, without the ROM area,
// the rest from 4 GiB on.
func place(host []hostRun, low uint64) []block {
	var blocks []block
	put := func(at, hva, size uint64) {
		if size > 0 {
			blocks = appendBlock(blocks, block{Extent: mem.Extent{Start: mem.Phys(at), Size: size}, hva: hva})
		}
	}
	var ram uint64 // how much RAM is placed
	for _, h := range host {
		for _, zone := range []struct{ from, to, at uint64 }{
			{0, min(low, romStart), 0}, {romEnd, low, romEnd}, {low, 1 << 62, highMem},
		} {
			from, to := max(ram, zone.from), min(ram+h.size, zone.to)
			if from < to {
				put(zone.at+from-zone.from, h.hva+from-ram, to-from)
			}
		}
		ram += h.size
	}
	return blocks
}
