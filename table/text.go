package table

import (
	"bufio"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// textTable is a table for people, all cells rendered and safe.
type textTable struct {
	heads  []string
	right  []bool // numbers are set flush right
	wide   []bool
	middle []bool // cells are cut in the middle
	cells  [][]string
	widths []int
	marks  []bool // rows that moved or were not read in full
	doubts doubts
}

const gap = "  "

// writeText prints rows in columns as wide as their contents, cut to opts.Width.
func writeText[T any](out *bufio.Writer, s *schema, cols []column, rows []T, opts Options) error {
	t := &textTable{}
	for _, c := range cols {
		head := strings.ToUpper(s.head(c.key, opts))
		t.heads = append(t.heads, head)
		t.right = append(t.right, numeric(c.typ))
		t.wide = append(t.wide, slices.Contains(opts.Wide, c.key))
		t.middle = append(t.middle, slices.Contains(opts.Middle, c.key))
		t.widths = append(t.widths, width(head))
	}
	renders := make([]func(reflect.Value) string, len(cols))
	for i, c := range cols {
		renders[i] = renderer(c.key)
	}
	for i := range rows {
		row := reflect.ValueOf(&rows[i]).Elem()
		line := make([]string, len(cols))
		for j, c := range cols {
			if f := opts.Cells[c.key]; f != nil {
				line[j] = Safe(f(&rows[i]))
			} else {
				line[j] = Safe(renders[j](row.FieldByIndex(c.index)))
			}
			t.widths[j] = max(t.widths[j], width(line[j]))
		}
		t.cells, t.marks = append(t.cells, line), append(t.marks, t.doubts.note(s, row))
	}
	t.fit(opts.Width)
	t.write(out, opts.Color)
	return nil
}

// renderer returns how cells under a key are shown.
func renderer(key string) func(reflect.Value) string {
	switch {
	case strings.HasSuffix(key, "_bytes"):
		return func(v reflect.Value) string { return human(v, Size) }
	case strings.HasSuffix(key, "_seconds"):
		return func(v reflect.Value) string { return human(v, Seconds) }
	}
	return plain
}

// human renders a number with f, anything else as it is.
func human(v reflect.Value, f func(float64) string) string {
	switch {
	case v.Kind() == reflect.Pointer:
		if v.IsNil() {
			return "-"
		}
		return human(v.Elem(), f)
	case v.CanInt():
		return f(float64(v.Int()))
	case v.CanUint():
		return f(float64(v.Uint()))
	case v.CanFloat():
		return f(v.Float())
	}
	return plain(v)
}

// plain renders any value: null as "-", arrays with spaces between, objects as
// their values with slashes between.
func plain(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return "-"
		}
		return plain(v.Elem())
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice && v.IsNil() || v.Len() == 0 {
			return "-"
		}
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = plain(v.Index(i))
		}
		return strings.Join(parts, " ")
	}
	switch x := v.Interface().(type) {
	case time.Time:
		return x.UTC().Format(time.DateTime + "Z")
	case fmt.Stringer:
		return x.String()
	}
	if s, ok := scalar(v); ok {
		if s == "" {
			return "-"
		}
		return s
	}
	if v.Kind() == reflect.Struct {
		var parts []string
		for i := range v.NumField() {
			if key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ","); key != "" && key != "-" {
				parts = append(parts, plain(v.Field(i)))
			}
		}
		return strings.Join(parts, "/")
	}
	return fmt.Sprint(v.Interface())
}

// numeric tells whether values of t are numbers, or may be.
func numeric(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Float32, reflect.Float64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	}
	return false
}

// Columns are not cut below these widths: shorter says nothing any more.
const (
	minWide   = 22
	minTight  = 12
	minNarrow = 6
)

// fit takes width from the widest columns until the table has limit columns: first
// from those that may be cut, then from any that are not numbers.
func (t *textTable) fit(limit int) {
	if limit <= 0 {
		return
	}
	total := len(gap) * (len(t.widths) - 1)
	if slices.Contains(t.marks, true) {
		total += len(gap) + 1
	}
	for _, w := range t.widths {
		total += w
	}
	cutTo := func(least int, may func(i int) bool) {
		for total > limit {
			widest := -1
			for i, w := range t.widths {
				if may(i) && w > least && (widest < 0 || w > t.widths[widest]) {
					widest = i
				}
			}
			if widest < 0 {
				return
			}
			t.widths[widest]--
			total--
		}
	}
	cutTo(minWide, func(i int) bool { return t.wide[i] })
	cutTo(minTight, func(i int) bool { return t.wide[i] })
	cutTo(minNarrow, func(i int) bool { return !t.right[i] })
}

// write prints the header, the lines and what the marks mean.
func (t *textTable) write(out *bufio.Writer, color bool) {
	if color {
		out.WriteString("\x1b[1m")
	}
	heads := slices.Clone(t.heads)
	for i := range heads {
		heads[i] = cut(heads[i], t.widths[i]) // a head is known by its beginning
	}
	t.line(out, heads, false)
	if color {
		out.WriteString("\x1b[0m")
	}
	out.WriteByte('\n')
	for i, cells := range t.cells {
		t.line(out, cells, t.marks[i])
		out.WriteByte('\n')
	}
	t.doubts.write(out, len(t.cells))
}

const spaces = "                                                                "

// line prints one line without its newline; nothing follows the last word.
func (t *textTable) line(out *bufio.Writer, cells []string, mark bool) {
	pending := 0
	pad := func(n int) { pending += n }
	flush := func() {
		for ; pending > 0; pending -= len(spaces) {
			out.WriteString(spaces[:min(pending, len(spaces))])
		}
		pending = 0
	}
	for i, s := range cells {
		if i > 0 {
			pad(len(gap))
		}
		w := width(s)
		if w > t.widths[i] {
			if t.middle[i] {
				s = cutMiddle(s, t.widths[i])
			} else {
				s = cut(s, t.widths[i])
			}
			w = width(s)
		}
		if t.right[i] {
			pad(t.widths[i] - w)
		}
		flush()
		out.WriteString(s)
		if !t.right[i] {
			pad(t.widths[i] - w)
		}
	}
	if mark {
		pad(len(gap))
		flush()
		out.WriteByte('!')
	}
}
