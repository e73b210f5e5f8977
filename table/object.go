package table

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
)

// WriteObject prints one row: for people a line for each key, as JSON an object,
// as CSV a header line and one more.
func WriteObject[T any](w io.Writer, row T, opts Options) error {
	if opts.Format == CSV {
		return Write(w, []T{row}, opts)
	}
	s, err := schemaOf[T]()
	if err != nil {
		return err
	}
	cols, err := s.choose(opts)
	if err != nil {
		return err
	}
	v := reflect.ValueOf(&row).Elem()
	if opts.Format == JSON {
		return writeObjectJSON(w, cols, v)
	}
	out := bufio.NewWriter(w)
	longest := 0
	for _, c := range cols {
		longest = max(longest, len(c.key))
	}
	for _, c := range cols {
		text := ""
		if f := opts.Cells[c.key]; f != nil {
			text = f(&row)
		} else {
			text = renderer(c.key)(v.FieldByIndex(c.index))
		}
		fmt.Fprintf(out, "%-*s  %s\n", longest, c.key, Safe(text))
	}
	if s.doubtful(v) {
		fmt.Fprintln(out, "! this kept changing while it was read, or could not be read in full: see moved and errors in -o json")
	}
	return out.Flush()
}

func writeObjectJSON(w io.Writer, cols []column, row reflect.Value) error {
	var buf, indented bytes.Buffer
	if err := object(&buf, cols, row); err != nil {
		return err
	}
	if err := json.Indent(&indented, buf.Bytes(), "", "  "); err != nil {
		return err
	}
	indented.WriteByte('\n')
	_, err := w.Write(plainJSON(indented.Bytes()))
	return err
}
