package kernel

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/umbravm/umbra/mem"
)

// Shape of what is printed.
const (
	textElems  = 200 // elements of an array that are shown
	textInline = 72  // bytes of a struct that fit on one line
)

// String prints the value as debuggers do. Numbers from 2^32 on are hexadecimal.
// Strings are quoted as Go quotes them; nothing in it steers a terminal.
func (v Value) String() string { return v.Node.text("") }

func (n Node) text(margin string) string {
	switch {
	case n.Fields != nil:
		parts := make([]string, len(n.Fields))
		for i, f := range n.Fields {
			parts[i] = f.Name + " = " + f.Node.text(margin+"  ")
		}
		return braces(parts, margin)
	case n.Elems != nil:
		return braces(elements(n.Elems, margin+"  "), margin)
	}
	return n.scalar()
}

func (n Node) scalar() string {
	var s string
	switch x := n.Scalar.(type) {
	case mem.Virt:
		s = fmt.Sprintf("(%s)%v", n.cast, x)
	case string:
		if n.cast == "enum" {
			return x
		}
		return strconv.Quote(x)
	case uint64:
		if s = strconv.FormatUint(x, 10); x >= 1<<32 {
			s = fmt.Sprintf("%#x", x)
		}
	default:
		s = fmt.Sprint(x)
	}
	if n.Note != "" {
		s += " " + n.Note
	}
	return s
}

// elements renders array elements; equal ones in a row are told once.
func elements(es []Node, margin string) (parts []string) {
	for i := 0; i < len(es); {
		same := 1
		for i+same < len(es) && reflect.DeepEqual(es[i], es[i+same]) {
			same++
		}
		if len(parts) == textElems {
			return append(parts, fmt.Sprintf("… %d more", len(es)-i))
		}
		text := es[i].text(margin)
		if same > 1 {
			text += fmt.Sprintf(" <%d times>", same)
		}
		parts = append(parts, text)
		i += same
	}
	return parts
}

// braces joins parts on one line when they fit, else one on each.
func braces(parts []string, margin string) string {
	line := "{" + strings.Join(parts, ", ") + "}"
	if len(line) <= textInline && !strings.Contains(line, "\n") {
		return line
	}
	var b strings.Builder
	b.WriteString("{\n")
	for _, p := range parts {
		b.WriteString(margin + "  " + p + ",\n")
	}
	b.WriteString(margin + "}")
	return b.String()
}
