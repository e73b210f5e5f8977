package ksym

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"sort"
	"sync"

	"github.com/umbravm/umbra/mem"
)

// Table is a kernel's symbol table: names and addresses as they lay in memory,
// decoded when asked for. Safe for use by several goroutines.
type Table struct {
	parts
	indexed sync.Once
	index   *index
}

// parts is what a table is loaded into.
type parts struct {
	loc       Locations
	tokens    *tokens
	names     []byte
	blocks    []uint32 // where each block of 256 names begins in names
	addresses addresses
}

// Len returns the number of symbols.
func (t *Table) Len() int { return t.addresses.len() }

// Locations returns where the table lies in memory.
func (t *Table) Locations() Locations { return t.loc }

// Encoding returns how the table stores addresses.
func (t *Table) Encoding() Encoding { return t.addresses.encoding }

// All yields the symbols in the table's order, which is ascending by address.
func (t *Table) All() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		var name []byte
		rest := t.names
		for i := range t.Len() {
			codes, size, _ := entry(rest)
			rest = rest[size:]
			name = t.tokens.expand(name[:0], codes)
			if !yield(Symbol{Name: string(name[1:]), Type: name[0], Addr: t.addresses.get(i)}) {
				return
			}
		}
	}
}

// codes returns the compressed name of symbol i.
func (t *Table) codes(i int) []byte {
	rest := t.names[t.blocks[i/blockNames]:]
	for range i % blockNames {
		_, size, _ := entry(rest)
		rest = rest[size:]
	}
	codes, _, _ := entry(rest)
	return codes
}

// symbol returns symbol i.
func (t *Table) symbol(i int) Symbol {
	var buf [maxName]byte
	name := t.tokens.expand(buf[:0], t.codes(i))
	return Symbol{Name: string(name[1:]), Type: name[0], Addr: t.addresses.get(i)}
}

// Symbolize returns the symbol that addr lies in and how many bytes into it:
// of all symbols in the image the last at or below addr, and of those at one
// address the first, as the kernel prints it. ok is false when addr lies below
// the first symbol of the image or above the last, which marks its end.
func (t *Table) Symbolize(addr mem.Virt) (s Symbol, offset uint64, ok bool) {
	a := &t.addresses
	n := a.len()
	if addr < a.get(a.first) || addr > a.get(n-1) {
		return Symbol{}, 0, false
	}
	after := a.first + sort.Search(n-a.first, func(i int) bool { return a.get(a.first+i) > addr })
	start := a.get(after - 1)
	i := a.first + sort.Search(after-a.first, func(i int) bool { return a.get(a.first+i) >= start })
	return t.symbol(i), uint64(addr - start), true
}

// Digest is the SHA-256 of the table as it lies in memory: names, tokens and
// addresses. It is the same at every boot of one kernel, wherever KASLR puts it:
// what holds absolute addresses is taken relative to the table's own place.
func (t *Table) Digest() [sha256.Size]byte {
	h := sha256.New()
	var num [8]byte
	put := func(v uint64) {
		binary.LittleEndian.PutUint64(num[:], v)
		h.Write(num[:])
	}
	part := func(p []byte) {
		put(uint64(len(p)))
		h.Write(p)
	}
	put(uint64(t.addresses.encoding))
	part(t.tokens.text)
	part(t.names)
	switch a := &t.addresses; a.encoding {
	case Plain:
		for i := range a.len() {
			addr := a.decode(i)
			if i >= a.first {
				addr -= t.loc.Names
			}
			put(uint64(addr))
		}
	case PCRelative:
		put(uint64(a.at - t.loc.Names))
		part(a.raw)
	default:
		put(uint64(a.relative - t.loc.Names))
		part(a.raw)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
