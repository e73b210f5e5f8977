package ksym

import (
	"bytes"
	"encoding/binary"

	"github.com/umbravm/umbra/mem"
)

const (
	tokenCount      = 256
	tokenIndexBytes = 2 * tokenCount
	// maxTokenTable bounds the token table: its index is 16 bits wide.
	maxTokenTable = 1 << 16
	maxToken      = maxName
)

// tokens is what the 256 codes of compressed names stand for: a character that
// occurs in names stands for itself, the codes left over for frequent strings.
// Token i is text[start[i]:start[i+1]-1], followed by a NUL.
type tokens struct {
	text  []byte
	start [tokenCount + 1]uint32
	len   [tokenCount]uint16
}

// parseTokens takes the token table from the head of text and checks it against
// its index. Bytes behind the table are ignored.
func parseTokens(text, index []byte) (*tokens, error) {
	if len(index) != tokenIndexBytes {
		return nil, malformed("token index of %d bytes", len(index))
	}
	t := &tokens{}
	pos := 0
	for i := range tokenCount {
		if at := int(binary.LittleEndian.Uint16(index[2*i:])); at != pos {
			return nil, malformed("token %d begins at %d, its index says %d", i, pos, at)
		}
		n := bytes.IndexByte(text[pos:min(len(text), pos+maxToken+1)], 0)
		if n < 0 {
			return nil, malformed("token %d has no end", i)
		}
		for _, c := range text[pos : pos+n] {
			if !isNameByte(c) {
				return nil, malformed("token %d has byte %#x", i, c)
			}
		}
		t.start[i], t.len[i] = uint32(pos), uint16(n)
		pos += n + 1
	}
	if pos > maxTokenTable {
		return nil, malformed("token table of %d bytes", pos)
	}
	t.start[tokenCount] = uint32(pos)
	t.text = bytes.Clone(text[:pos])
	return t, nil
}

func (t *tokens) token(code byte) []byte {
	s := t.start[code]
	return t.text[s : s+uint32(t.len[code])]
}

func isNameByte(c byte) bool { return c > ' ' && c < 0x7f }

// expand appends the name that entry's codes stand for, type letter first.
func (t *tokens) expand(dst, codes []byte) []byte {
	for _, c := range codes {
		dst = append(dst, t.token(c)...)
	}
	return dst
}

// loadTokens reads the token table and its index from where they are said to be.
func loadTokens(v view, table, index mem.Virt) (*tokens, error) {
	var idx [tokenIndexBytes]byte
	if err := v.read(idx[:], index); err != nil {
		return nil, malformed("token index: %w", err)
	}
	n := int(binary.LittleEndian.Uint16(idx[tokenIndexBytes-2:])) + maxToken + 1
	text := v.readUpTo(make([]byte, n), table)
	return parseTokens(text, idx[:])
}
