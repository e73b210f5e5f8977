package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/umbravm/umbra/mem"
)

// VMCoreInfo is the text a kernel leaves for dump tools, by key: "OSRELEASE",
// "SYMBOL(swapper_pg_dir)", "NUMBER(phys_base)". It is the guest's word.
type VMCoreInfo map[string]string

// maxVMCoreInfo is VMCOREINFO_BYTES, the size of the kernel's buffer (4 KiB, a
// page), with room to grow.
const maxVMCoreInfo = 16 << 10

// ParseVMCoreInfo reads the note's text.
func ParseVMCoreInfo(text []byte) (VMCoreInfo, error) {
	if len(text) > maxVMCoreInfo {
		return nil, fmt.Errorf("vmcoreinfo of %d bytes: %w", len(text), ErrTooLong)
	}
	v := make(VMCoreInfo)
	for line := range strings.Lines(string(bytes.TrimRight(text, "\x00"))) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if ok {
			v[key] = value
		}
	}
	if v["OSRELEASE"] == "" {
		return nil, fmt.Errorf("vmcoreinfo without OSRELEASE")
	}
	return v, nil
}

// parseNote reads a page that begins with the ELF note.
func parseNote(page []byte) (VMCoreInfo, bool) {
	const name = "VMCOREINFO\x00"
	if len(page) < 24+len("OSRELEASE=") || string(page[12:12+len(name)]) != name {
		return nil, false
	}
	size := binary.LittleEndian.Uint32(page[4:])
	if binary.LittleEndian.Uint32(page) != uint32(len(name)) || size == 0 {
		return nil, false
	}
	v, err := ParseVMCoreInfo(page[24:min(uint64(len(page)), 24+uint64(size))])
	return v, err == nil
}

// number returns a value the note writes in decimal or hexadecimal.
func (v VMCoreInfo) number(key string, base int) (uint64, error) {
	s, ok := v[key]
	if !ok {
		return 0, fmt.Errorf("vmcoreinfo has no %s", key)
	}
	if n, err := strconv.ParseUint(s, base, 64); err == nil {
		return n, nil
	}
	n, err := strconv.ParseInt(s, base, 64) // phys_base is printed signed
	if err != nil {
		return 0, fmt.Errorf("vmcoreinfo %s: %w", key, err)
	}
	return uint64(n), nil
}

// pageTables returns the kernel's top table and its depth.
func (v VMCoreInfo) pageTables() (root mem.Phys, levels int, err error) {
	pgd, err := v.number("SYMBOL(swapper_pg_dir)", 16)
	if err != nil {
		return 0, 0, err
	}
	base, err := v.number("NUMBER(phys_base)", 10)
	if err != nil {
		return 0, 0, err
	}
	levels = 4
	if v["NUMBER(pgtable_l5_enabled)"] == "1" {
		levels = 5
	}
	return mem.Phys(pgd - uint64(imageLow) + base), levels, nil
}
