package ksym

import (
	"math/bits"
	"math/rand/v2"

	"github.com/umbravm/umbra/mem"
)

// index finds symbols by name: symbols[starts[b]:starts[b+1]] are those whose
// names hash to bucket b, ascending. kallsyms_seqs_of_names, a table sorted by
// name, would do where a kernel has it (6.2 on), but not all do, and a guest
// could hide symbols by disordering it.
type index struct {
	hash    hasher
	shift   uint
	starts  []uint32
	symbols []uint32
}

// hasher is a polynomial hash modulo the prime 2^61-1 at a random point. A name's
// hash follows from its tokens' hashes without expanding it, and a guest cannot
// choose names that collide.
type hasher struct {
	point uint64
	hash  [tokenCount]uint64 // of each token
	power [tokenCount]uint64 // point^len of each token
	tail  [tokenCount]uint64 // hash without the token's first character
}

const prime = 1<<61 - 1

// mulAdd returns a*b+c modulo prime, for values below it.
func mulAdd(a, b, c uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	s := (lo & prime) + (hi<<3 | lo>>61) + c
	s = (s & prime) + s>>61
	if s >= prime {
		s -= prime
	}
	return s
}

func (h *hasher) init(t *tokens) {
	h.point = 1<<32 + rand.Uint64N(prime-1<<32)
	for i := range tokenCount {
		tok := t.token(byte(i))
		h.power[i] = 1
		for range tok {
			h.power[i] = mulAdd(h.power[i], h.point, 0)
		}
		h.hash[i] = h.bytes(tok)
		if len(tok) > 0 {
			h.tail[i] = h.bytes(tok[1:])
		}
	}
}

func (h *hasher) bytes(p []byte) uint64 {
	s := uint64(0)
	for _, c := range p {
		s = mulAdd(s, h.point, uint64(c))
	}
	return s
}

// codes hashes the name behind the type letter of compressed codes.
func (h *hasher) codes(p []byte) uint64 {
	s := h.tail[p[0]]
	for _, c := range p[1:] {
		s = mulAdd(s, h.power[c], h.hash[c])
	}
	return s
}

// newIndex indexes a checked table, in time linear in its size whatever it holds.
func newIndex(t *Table) *index {
	n := t.Len()
	width := uint(bits.Len(uint(n)))
	x := &index{
		shift:   61 - width,
		starts:  make([]uint32, 1<<width+1),
		symbols: make([]uint32, n),
	}
	x.hash.init(t.tokens)
	bucket := make([]uint32, n)
	rest := t.names
	for i := range n {
		codes, size, _ := entry(rest)
		rest = rest[size:]
		b := uint32(x.hash.codes(codes) >> x.shift)
		bucket[i] = b
		x.starts[b+1]++
	}
	for b := 1; b < len(x.starts); b++ {
		x.starts[b] += x.starts[b-1]
	}
	// Filling from the back moves each bucket's end down to its start.
	for i := n - 1; i >= 0; i-- {
		b := bucket[i] + 1
		x.starts[b]--
		x.symbols[x.starts[b]] = uint32(i)
	}
	copy(x.starts, x.starts[1:])
	x.starts[len(x.starts)-1] = uint32(n)
	return x
}

// find yields the symbols called name, ascending.
func (t *Table) find(name string, yield func(i int, type_ byte) bool) {
	t.indexed.Do(func() { t.index = newIndex(t) })
	if len(name) == 0 || len(name) >= maxName {
		return
	}
	x := t.index
	var buf [maxName]byte
	b := x.hash.bytes(append(buf[:0], name...)) >> x.shift
	for _, i := range x.symbols[x.starts[b]:x.starts[b+1]] {
		full := t.tokens.expand(buf[:0], t.codes(int(i)))
		if string(full[1:]) == name && !yield(int(i), full[0]) {
			return
		}
	}
}

// Lookup returns the address of the symbol called name, of several the lowest.
// The first call indexes the table, which takes some milliseconds.
func (t *Table) Lookup(name string) (addr mem.Virt, ok bool) {
	t.find(name, func(i int, _ byte) bool {
		addr, ok = t.addresses.get(i), true
		return false
	})
	return addr, ok
}

// LookupAll returns all symbols called name, ascending by address: static
// functions and variables of different files may share one.
func (t *Table) LookupAll(name string) []Symbol {
	var all []Symbol
	t.find(name, func(i int, type_ byte) bool {
		all = append(all, Symbol{Name: name, Type: type_, Addr: t.addresses.get(i)})
		return true
	})
	return all
}
