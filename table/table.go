// Package table prints rows, slices of structs with json tags, as a table for
// people, as JSON or as CSV. What a row holds may have been written by a hostile
// machine: nothing that could steer a terminal reaches one.
package table

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Format is how rows are printed.
type Format string

const (
	Text Format = "table" // for people
	JSON Format = "json"  // an array of objects
	CSV  Format = "csv"   // RFC 4180, with a header line
)

// Formats lists the formats, the default first.
var Formats = []Format{Text, JSON, CSV}

// Options of Write. The zero value is a table of all columns, as wide as it gets.
type Options struct {
	Format  Format
	Columns []string // keys to print, or their heads, in this order; empty means Default, or all
	Default []string // what a table shows when Columns is empty; JSON and CSV have all
	Sort    string   // key to sort by, with a leading "-" from the largest down; "" keeps the order
	Width   int      // columns of the terminal; 0 is no limit
	Color   bool     // mark the header

	// Cells overrides how a table for people shows a key. It is given a pointer to
	// the row. The result is made safe for terminals like any other.
	Cells map[string]func(row any) string

	// Heads overrides what stands above a key's cells. Without it a key that ends
	// in a unit loses it, since cells say theirs: "rss_bytes" is RSS.
	Heads map[string]string

	// Middle are keys whose cells are cut in the middle rather than at their end,
	// which says as much as the beginning: addresses with ports, paths.
	Middle []string

	// Wide are keys whose cells may be cut first when a table is too wide for the
	// terminal. The rest are cut only when that is not enough.
	Wide []string
}

// ErrColumn is a key that rows do not have. It wraps into an error that lists the
// keys they have.
var ErrColumn = errors.New("no such column")

// Write prints rows to w. Rows with a true "moved" or a non-empty "errors" are
// marked in a table, and a footnote says what the mark means and what the first of
// them lacks.
func Write[T any](w io.Writer, rows []T, opts Options) error {
	s, err := schemaOf[T]()
	if err != nil {
		return err
	}
	cols, err := s.choose(opts)
	if err != nil {
		return err
	}
	if rows, err = sorted(s, rows, opts); err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 1<<16)
	switch opts.Format {
	case JSON:
		err = writeJSON(out, s, cols, rows)
	case CSV:
		err = writeCSV(out, cols, rows)
	case Text, "":
		err = writeText(out, s, cols, rows, opts)
	default:
		err = fmt.Errorf("output format %q: one of table, json, csv", opts.Format)
	}
	return errors.Join(err, out.Flush())
}

// Keys returns the keys a row of type T has, in order.
func Keys[T any]() ([]string, error) {
	s, err := schemaOf[T]()
	if err != nil {
		return nil, err
	}
	return s.keys(), nil
}

// Check tells whether opts name columns that rows of type T have and a format
// there is, so that a mistake is found before a machine is read.
func Check[T any](opts Options) error {
	s, err := schemaOf[T]()
	if err != nil {
		return err
	}
	if _, err := s.choose(opts); err != nil {
		return err
	}
	if _, err := s.column(strings.TrimPrefix(opts.Sort, "-"), opts); opts.Sort != "" && err != nil {
		return err
	}
	if opts.Format != "" && !slices.Contains(Formats, opts.Format) {
		return fmt.Errorf("output format %q: one of table, json, csv", opts.Format)
	}
	return nil
}
