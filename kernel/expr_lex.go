package kernel

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrSyntax is an expression that cannot be understood.
var ErrSyntax = errors.New("syntax error")

// Bounds of an expression. It is the user's word, not the guest's, but may have
// come a long way.
const (
	maxExpr      = 4096 // bytes
	maxExprDepth = 64
)

type tokenKind uint8

const (
	tokEnd tokenKind = iota
	tokName
	tokNumber
	tokPunct // "->" or one character
)

type token struct {
	kind tokenKind
	text string
	num  uint64
	at   int // offset in the expression
}

func (t token) String() string {
	if t.kind == tokEnd {
		return "the end"
	}
	return strconv.Quote(t.text)
}

// lexExpr takes an expression apart. The last token is tokEnd.
func lexExpr(s string) (toks []token, err error) {
	if len(s) > maxExpr {
		return nil, fmt.Errorf("%w: %d bytes are more than %d", ErrSyntax, len(s), maxExpr)
	}
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n':
			i++
			continue
		case isNameByte(c):
			n := i
			for n < len(s) && isNameByte(s[n]) {
				n++
			}
			t := token{kind: tokName, text: s[i:n], at: i}
			if c >= '0' && c <= '9' {
				t.kind = tokNumber
				if t.num, err = strconv.ParseUint(t.text, 0, 64); err != nil {
					return nil, fmt.Errorf("%w at %d: number %q", ErrSyntax, i, t.text)
				}
			}
			toks = append(toks, t)
			i = n
			continue
		case strings.HasPrefix(s[i:], "->"):
			toks = append(toks, token{kind: tokPunct, text: "->", at: i})
			i += 2
			continue
		case strings.IndexByte("()[]*&.,+-", c) >= 0:
			toks = append(toks, token{kind: tokPunct, text: s[i : i+1], at: i})
			i++
			continue
		}
		return nil, fmt.Errorf("%w at %d: %q means nothing here", ErrSyntax, i, c)
	}
	return append(toks, token{kind: tokEnd, at: len(s)}), nil
}

// isNameByte tells what C names consist of. A name may hold a $ or end in .N in
// symbol tables, but not here.
func isNameByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
