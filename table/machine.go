package table

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// writeJSON prints rows as an array, one object per line. Every object has all the
// keys: what a row has no value for is null.
func writeJSON[T any](w io.Writer, _ *schema, cols []column, rows []T) error {
	var buf bytes.Buffer
	if len(rows) == 0 {
		_, err := io.WriteString(w, "[]\n")
		return err
	}
	for i := range rows {
		buf.Reset()
		sep := ",\n "
		if i == 0 {
			sep = "["
		}
		buf.WriteString(sep)
		if err := object(&buf, cols, reflect.ValueOf(&rows[i]).Elem()); err != nil {
			return err
		}
		if _, err := w.Write(plainJSON(buf.Bytes())); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "]\n")
	return err
}

// object appends a row as a JSON object whose keys have the order of cols.
func object(buf *bytes.Buffer, cols []column, row reflect.Value) error {
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	for i, c := range cols {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		buf.WriteByte(sep)
		buf.WriteByte('"')
		buf.WriteString(c.key)
		buf.WriteString(`":`)
		v := c.value(row)
		if !v.IsValid() {
			buf.WriteString("null")
			continue
		}
		if err := enc.Encode(v.Interface()); err != nil {
			return fmt.Errorf("column %s: %w", c.key, err)
		}
		buf.Truncate(buf.Len() - 1) // Encode ends with a newline
	}
	buf.WriteByte('}')
	return nil
}

// plainJSON escapes what encoding/json leaves in strings and a terminal would obey:
// DEL, C1 controls and direction marks. Outside strings none of them can be.
func plainJSON(b []byte) []byte {
	if !hasUnsafe(b) {
		return b
	}
	var out bytes.Buffer
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r < 0x7f || !unsafeRune(r):
			out.Write(b[:n])
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out.Bytes()
}

// JSONValue returns v as indented JSON that is safe on a terminal.
func JSONValue(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return plainJSON(buf.Bytes()), nil
}

func hasUnsafe(b []byte) bool {
	for _, c := range b {
		if c >= 0x7f {
			return true
		}
	}
	return false
}

// writeCSV prints rows with a header line. Null is an empty field; arrays of
// strings and numbers are joined by spaces, anything nested is JSON.
func writeCSV[T any](w io.Writer, cols []column, rows []T) error {
	cw := csv.NewWriter(w)
	line := make([]string, len(cols))
	for i, c := range cols {
		line[i] = c.key
	}
	if err := cw.Write(line); err != nil {
		return err
	}
	for i := range rows {
		row := reflect.ValueOf(&rows[i]).Elem()
		for j, c := range cols {
			s, err := csvField(c.value(row))
			if err != nil {
				return fmt.Errorf("column %s: %w", c.key, err)
			}
			line[j] = s
		}
		if err := cw.Write(line); err != nil {
			return err
		}
	}
	cw.Flush()
	return cw.Error()
}

func csvField(v reflect.Value) (string, error) {
	if !v.IsValid() {
		return "", nil
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return "", nil
		}
		v = v.Elem()
	}
	if t, ok := v.Interface().(time.Time); ok {
		return t.Format(time.RFC3339Nano), nil
	}
	if s, ok := scalar(v); ok {
		return s, nil
	}
	if v.Kind() == reflect.Slice {
		parts := make([]string, v.Len())
		flat := true
		for i := range parts {
			if parts[i], flat = scalar(v.Index(i)); !flat {
				break
			}
		}
		if flat {
			return strings.Join(parts, " "), nil
		}
	}
	b, err := json.Marshal(v.Interface())
	return string(b), err
}

// scalar returns a string, number or truth value as JSON would have it, strings
// without quotes.
func scalar(v reflect.Value) (string, bool) {
	switch {
	case v.Kind() == reflect.String:
		return v.String(), true
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10), true
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10), true
	case v.CanFloat():
		return strconv.FormatFloat(v.Float(), 'f', -1, 64), true
	case v.Kind() == reflect.Bool:
		return strconv.FormatBool(v.Bool()), true
	}
	return "", false
}
