package table

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// Safe returns s with everything a terminal could obey written out: control
// characters (ESC among them), marks that turn the direction of text, and bytes
// that are not UTF-8 become \n, \t or \xNN, \u{NN}. It is for people: a text that
// holds such an escape already looks the same.
func Safe(s string) string {
	clean := true
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] >= 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case unsafeRune(r) && r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case unsafeRune(r):
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// unsafeRune tells what must not reach a terminal: controls, C0 and C1; line and
// paragraph separators; format characters, which hide or reorder text; private
// and unassigned code points, of which terminals know what nobody else does.
func unsafeRune(r rune) bool {
	if r < 0x7f {
		return r < ' '
	}
	return !unicode.IsPrint(r)
}

// width returns the terminal columns that s, which is Safe, takes.
func width(s string) int {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return uniseg.StringWidth(s)
		}
	}
	return len(s)
}

// cut shortens s to at most n columns, the last of which is "…" when something
// was left out.
func cut(s string, n int) string {
	if width(s) <= n {
		return s
	}
	if n <= 0 {
		return ""
	}
	used, end, state := 0, 0, -1
	for rest := s; rest != ""; {
		var cluster string
		var w int
		cluster, rest, w, state = uniseg.FirstGraphemeClusterInString(rest, state)
		if used+w > n-1 {
			break
		}
		used, end = used+w, end+len(cluster)
	}
	return s[:end] + "…"
}

// cutMiddle shortens s to at most n columns with "…" for what stood in its middle.
func cutMiddle(s string, n int) string {
	if width(s) <= n || n < 3 {
		return cut(s, n)
	}
	head := strings.TrimSuffix(cut(s, n-n/2), "…")
	// The end: what is left when clusters are taken away until it fits.
	tail, state := s[len(head):], -1
	for width(tail) > n/2 {
		_, tail, _, state = uniseg.FirstGraphemeClusterInString(tail, state)
	}
	return head + "…" + tail
}

// Cut shortens s, which is Safe, to n terminal columns; n <= 0 is no limit.
func Cut(s string, n int) string {
	if n <= 0 {
		return s
	}
	return cut(s, n)
}
