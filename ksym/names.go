package ksym

import (
	"encoding/binary"

	"github.com/umbravm/umbra/mem"
)

// blockNames is how many names one marker stands for.
const blockNames = 256

// blocks returns how many markers n names have.
func blocks(n uint32) uint32 { return (n + blockNames - 1) / blockNames }

// entry splits the first compressed name off p: its codes, and the bytes it
// takes up with its length. A length of 128 or more takes two bytes, low seven
// bits first (6.1; before it there were none). ok is false when p ends inside
// the entry or it is empty or longer than any name.
func entry(p []byte) (codes []byte, size int, ok bool) {
	if len(p) < 2 {
		return nil, 0, false
	}
	n, head := int(p[0]), 1
	if n&0x80 != 0 {
		n, head = n&0x7f|int(p[1])<<7, 2
	}
	if n == 0 || n > maxName || len(p) < head+n {
		return nil, 0, false
	}
	return p[head : head+n], head + n, true
}

// namesSize returns how many bytes n names at a take up, reading them in pieces
// and no further than limit bytes.
func namesSize(v view, a mem.Virt, n uint32, limit uint64) (uint64, error) {
	var buf [64 << 10]byte
	size := uint64(0)
	p := buf[:0]
	for i := range n {
		_, used, ok := entry(p)
		if !ok {
			at, fits := a.Add(size)
			if !fits {
				return 0, malformed("names run past the address space")
			}
			p = v.readUpTo(buf[:], at)
			if _, used, ok = entry(p); !ok {
				return 0, malformed("name %d of %d at %v", i, n, at)
			}
		}
		p = p[used:]
		if size += uint64(used); size > limit {
			return 0, malformed("name %d of %d lies %d bytes into the names", i, n, size)
		}
	}
	return size, nil
}

// checkNames walks n names through all of p and returns where each block of 256
// begins. It fails unless they end exactly where p does and each expands to a
// type letter and a name.
func checkNames(p []byte, n uint32, t *tokens) ([]uint32, error) {
	starts := make([]uint32, 0, blocks(n))
	pos := 0
	for i := range n {
		if i%blockNames == 0 {
			starts = append(starts, uint32(pos))
		}
		codes, size, ok := entry(p[pos:])
		if !ok {
			return nil, malformed("name %d of %d, %#x bytes into the names", i, n, pos)
		}
		length := 0
		for _, c := range codes {
			length += int(t.len[c])
		}
		if length < 2 || length > maxName {
			return nil, malformed("name %d of %d has %d characters", i, n, length)
		}
		if first := t.token(codes[0]); len(first) == 0 || !isType(first[0]) {
			return nil, malformed("name %d of %d has no type letter", i, n)
		}
		pos += size
	}
	if pos != len(p) {
		return nil, malformed("%d names end after %#x bytes of %#x", n, pos, len(p))
	}
	return starts, nil
}

// isType tells whether c is a letter nm marks symbols with.
func isType(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '?' || c == '-'
}

// checkMarkers compares the markers in memory with where the blocks begin.
func checkMarkers(p []byte, starts []uint32) error {
	for i, s := range starts {
		if m := binary.LittleEndian.Uint32(p[4*i:]); m != s {
			return malformed("marker %d says %#x, name %d begins at %#x", i, m, i*blockNames, s)
		}
	}
	return nil
}
