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
		longest = max(longest, len(s.head(c.key, opts)))
	}
	for _, c := range cols {
		text := ""
		if f := opts.Cells[c.key]; f != nil {
			text = f(&row)
		} else {
			text = renderer(c.key)(v.FieldByIndex(c.index))
		}
		fmt.Fprintf(out, "%-*s  %s\n", longest, s.head(c.key, opts), Safe(text))
	}
	s.objectDoubts(out, v)
	return out.Flush()
}

// objectDoubts says what of an object is not known, line by line.
func (s *schema) objectDoubts(out *bufio.Writer, v reflect.Value) {
	if s.moved >= 0 && v.FieldByIndex(s.cols[s.moved].index).Bool() {
		fmt.Fprintln(out, "! this kept changing while it was read")
	}
	if s.errors >= 0 {
		errs := v.FieldByIndex(s.cols[s.errors].index)
		for i := range errs.Len() {
			fmt.Fprintf(out, "! %s\n", Safe(plain(errs.Index(i))))
		}
	}
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
