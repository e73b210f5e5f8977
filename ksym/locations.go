package ksym

import (
	"encoding/binary"
	"fmt"

	"github.com/umbravm/umbra/mem"
)

// Locations is where the parts of a symbol table lie.
type Locations struct {
	NumSyms    mem.Virt // kallsyms_num_syms, 32 bits
	Names      mem.Virt // kallsyms_names
	Markers    mem.Virt // kallsyms_markers; 0: behind the names
	TokenTable mem.Virt // kallsyms_token_table
	TokenIndex mem.Virt // kallsyms_token_index

	// Offsets is kallsyms_offsets; 0 when there are addresses instead.
	Offsets mem.Virt
	// RelativeBase is kallsyms_relative_base, 64 bits; 0 when offsets count from
	// their own place.
	RelativeBase mem.Virt
	// Addresses is kallsyms_addresses; 0 when there are offsets.
	Addresses mem.Virt
}

// VMCoreInfo gathers the locations a kernel's VMCOREINFO names. symbol answers
// for one of its SYMBOL(…) lines. Kernels before 6.0 name none of the tables.
func VMCoreInfo(symbol func(name string) (mem.Virt, bool)) (Locations, error) {
	var l Locations
	for _, f := range []struct {
		name string
		to   *mem.Virt
	}{
		{"kallsyms_num_syms", &l.NumSyms},
		{"kallsyms_names", &l.Names},
		{"kallsyms_token_table", &l.TokenTable},
		{"kallsyms_token_index", &l.TokenIndex},
	} {
		a, ok := symbol(f.name)
		if !ok || a == 0 {
			return Locations{}, fmt.Errorf("%w: VMCOREINFO does not name %s", ErrNotFound, f.name)
		}
		*f.to = a
	}
	l.Offsets, _ = symbol("kallsyms_offsets")
	l.RelativeBase, _ = symbol("kallsyms_relative_base")
	if l.Offsets == 0 {
		l.Addresses, _ = symbol("kallsyms_addresses")
	}
	if l.Offsets == 0 && l.Addresses == 0 {
		return Locations{}, fmt.Errorf("%w: VMCOREINFO names neither kallsyms_offsets nor kallsyms_addresses", ErrNotFound)
	}
	return l, nil
}

// Load reads a table from where its parts are said to lie, and proves it. The
// error wraps ErrMalformed when they do not agree.
func Load(img Image, l Locations) (*Table, error) {
	v, err := newView(img)
	if err != nil {
		return nil, err
	}
	return load(v, l)
}

func load(v view, l Locations) (*Table, error) {
	n, err := loadCount(v, l.NumSyms)
	if err != nil {
		return nil, err
	}
	t, err := loadNamed(v, l, n)
	if err != nil {
		return nil, err
	}
	if err := t.loadAddresses(v, n); err != nil {
		return nil, err
	}
	return &Table{parts: *t}, nil
}

// loadNamed loads all but the addresses.
func loadNamed(v view, l Locations, n uint32) (t *parts, err error) {
	t = &parts{loc: l}
	if t.tokens, err = loadTokens(v, l.TokenTable, l.TokenIndex); err != nil {
		return nil, err
	}
	if err := t.loadNames(v, n); err != nil {
		return nil, err
	}
	return t, nil
}

func loadCount(v view, at mem.Virt) (uint32, error) {
	var p [4]byte
	if err := v.read(p[:], at); err != nil {
		return 0, malformed("number of symbols: %w", err)
	}
	n := binary.LittleEndian.Uint32(p[:])
	if n < minSymbols || n > maxSymbols {
		return 0, malformed("%d symbols", n)
	}
	return n, nil
}

func (t *parts) loadNames(v view, n uint32) error {
	size, err := namesSize(v, t.loc.Names, n, maxNamesBytes)
	if err != nil {
		return err
	}
	t.names = make([]byte, size)
	if err = v.read(t.names, t.loc.Names); err != nil {
		return malformed("names: %w", err)
	}
	if t.blocks, err = checkNames(t.names, n, t.tokens); err != nil {
		return err
	}
	// Tables are aligned to 8 bytes up to 6.x, to 4 since 7.0.
	end := t.loc.Names + mem.Virt(size)
	candidates := []mem.Virt{t.loc.Markers}
	if t.loc.Markers == 0 {
		candidates = []mem.Virt{alignUp(end, 4), alignUp(end, 8)}
	}
	p := make([]byte, 4*len(t.blocks))
	for _, at := range candidates {
		if err = v.read(p, at); err != nil {
			err = malformed("markers: %w", err)
			continue
		}
		if err = checkMarkers(p, t.blocks); err == nil {
			t.loc.Markers = at
			return nil
		}
	}
	return err
}

func (t *parts) loadAddresses(v view, n uint32) error {
	a := addresses{encoding: PCRelative, at: t.loc.Offsets}
	switch {
	case t.loc.Addresses != 0:
		a.encoding, a.at = Plain, t.loc.Addresses
	case t.loc.RelativeBase != 0:
		var p [8]byte
		if err := v.read(p[:], t.loc.RelativeBase); err != nil {
			return malformed("relative base: %w", err)
		}
		a.encoding, a.relative = BaseRelative, mem.Virt(binary.LittleEndian.Uint64(p[:]))
		if !v.contains(a.relative, 1) {
			return malformed("relative base %v lies outside the kernel image at %v", a.relative, v.base)
		}
	}
	if err := a.readTail(v, n); err != nil {
		return err
	}
	all := make([]byte, uint64(n)*a.encoding.width())
	a.at -= mem.Virt(len(all) - len(a.raw))
	a.raw = all
	if err := v.read(a.raw, a.at); err != nil {
		return malformed("addresses: %w", err)
	}
	t.addresses = a
	lo, hi := t.extent()
	return t.addresses.check(v, lo, hi)
}

// extent returns where the tables begin and end.
func (t *parts) extent() (lo, hi mem.Virt) {
	l, a := &t.loc, &t.addresses
	lo = min(l.NumSyms, l.Names, l.Markers, l.TokenTable, l.TokenIndex, a.at)
	hi = max(l.NumSyms+4, l.Names+mem.Virt(len(t.names)), l.Markers+mem.Virt(4*len(t.blocks)),
		l.TokenTable+mem.Virt(len(t.tokens.text)), l.TokenIndex+tokenIndexBytes, a.at+mem.Virt(len(a.raw)))
	if l.RelativeBase != 0 {
		lo, hi = min(lo, l.RelativeBase), max(hi, l.RelativeBase+8)
	}
	return lo, hi
}
