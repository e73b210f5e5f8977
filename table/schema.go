package table

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// column is one key of a row.
type column struct {
	key   string
	index []int
	typ   reflect.Type
	omit  bool // the zero value stands for null ("omitempty")
}

// value returns the column's value in row, the zero Value for a null one.
func (c column) value(row reflect.Value) reflect.Value {
	v := row.FieldByIndex(c.index)
	if c.omit && v.IsZero() {
		return reflect.Value{}
	}
	return v
}

// schema is what the type of a row says of its columns.
type schema struct {
	cols   []column
	moved  int // index into cols, -1 without
	errors int
}

func schemaOf[T any]() (*schema, error) {
	t := reflect.TypeFor[T]()
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("rows of type %v are not structs", t)
	}
	s := &schema{moved: -1, errors: -1}
	s.add(t, nil)
	for i, c := range s.cols {
		switch {
		case c.key == "moved" && c.typ.Kind() == reflect.Bool:
			s.moved = i
		case c.key == "errors" && c.typ.Kind() == reflect.Slice:
			s.errors = i
		}
	}
	return s, nil
}

// add appends the columns of t; embedded structs without a key add theirs.
func (s *schema) add(t reflect.Type, prefix []int) {
	for i := range t.NumField() {
		f := t.Field(i)
		key, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		index := append(slices.Clone(prefix), i)
		switch {
		case key == "-":
		case key == "" && f.Anonymous && f.Type.Kind() == reflect.Struct:
			s.add(f.Type, index)
		case key == "" || !f.IsExported():
		default:
			s.cols = append(s.cols, column{key, index, f.Type, strings.Contains(opts, "omitempty")})
		}
	}
}

func (s *schema) keys() (keys []string) {
	for _, c := range s.cols {
		keys = append(keys, c.key)
	}
	return keys
}

// column returns the column of a key, or of what a table writes above it.
func (s *schema) column(key string, opts Options) (column, error) {
	for _, c := range s.cols {
		if strings.EqualFold(c.key, key) {
			return c, nil
		}
	}
	for _, c := range s.cols {
		if strings.EqualFold(s.head(c.key, opts), key) {
			return c, nil
		}
	}
	return column{}, fmt.Errorf("%w: %q; there are %s", ErrColumn, key, strings.Join(s.keys(), ", "))
}

// head returns what people read above a key's cells: the key, without the unit when
// cells say theirs and no other key is called so.
func (s *schema) head(key string, opts Options) string {
	if h := opts.Heads[key]; h != "" {
		return h
	}
	for _, unit := range []string{"_bytes", "_seconds"} {
		if short, ok := strings.CutSuffix(key, unit); ok && !slices.Contains(s.keys(), short) {
			return short
		}
	}
	return key
}

// choose returns the columns that opts ask for.
func (s *schema) choose(opts Options) ([]column, error) {
	want := opts.Columns
	if len(want) == 0 && (opts.Format == Text || opts.Format == "") {
		want = opts.Default
	}
	if len(want) == 0 {
		return s.cols, nil
	}
	var cols []column
	for _, key := range want {
		c, err := s.column(key, opts)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(cols, func(have column) bool { return have.key == c.key }) {
			return nil, fmt.Errorf("column %s is named twice", c.key)
		}
		cols = append(cols, c)
	}
	return cols, nil
}

// doubts counts the rows that are marked, and why.
type doubts struct {
	moved, broken int
	first         string // what the first broken row lacks
}

// note adds a row and tells whether it is to be marked.
func (d *doubts) note(s *schema, row reflect.Value) bool {
	moved := s.moved >= 0 && row.FieldByIndex(s.cols[s.moved].index).Bool()
	if moved {
		d.moved++
	}
	if s.errors < 0 {
		return moved
	}
	errs := row.FieldByIndex(s.cols[s.errors].index)
	if errs.Len() == 0 {
		return moved
	}
	if d.broken++; d.first == "" {
		d.first = Safe(plain(errs.Index(0)))
	}
	return true
}

// write prints what the marks of rows mean.
func (d *doubts) write(out *bufio.Writer, rows int) {
	if d.moved > 0 {
		fmt.Fprintf(out, "! %d of %d rows kept changing while they were read: see moved in -o json\n", d.moved, rows)
	}
	if d.broken > 0 {
		fmt.Fprintf(out, "! %d of %d rows could not be read in full: see errors in -o json; the first is %s\n", d.broken, rows, d.first)
	}
}

// sorted returns rows ordered by a key, nulls last; rows that are equal keep their order.
func sorted[T any](s *schema, rows []T, opts Options) ([]T, error) {
	if opts.Sort == "" {
		return rows, nil
	}
	key, sign := opts.Sort, 1
	if rest, down := strings.CutPrefix(key, "-"); down {
		key, sign = rest, -1
	}
	c, err := s.column(key, opts)
	if err != nil {
		return nil, err
	}
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b T) int {
		return compare(reflect.ValueOf(&a).Elem().FieldByIndex(c.index), reflect.ValueOf(&b).Elem().FieldByIndex(c.index), sign)
	})
	return rows, nil
}

// compare orders two values of the same type; nil comes last whatever the sign.
func compare(a, b reflect.Value, sign int) int {
	if a.Kind() == reflect.Pointer {
		switch {
		case a.IsNil() || b.IsNil():
			return cmp.Compare(boolInt(a.IsNil()), boolInt(b.IsNil()))
		}
		return compare(a.Elem(), b.Elem(), sign)
	}
	switch {
	case a.CanInt():
		return sign * cmp.Compare(a.Int(), b.Int())
	case a.CanUint():
		return sign * cmp.Compare(a.Uint(), b.Uint())
	case a.CanFloat():
		return sign * cmp.Compare(a.Float(), b.Float())
	case a.Kind() == reflect.String:
		return sign * strings.Compare(a.String(), b.String())
	case a.Kind() == reflect.Bool:
		return sign * cmp.Compare(boolInt(a.Bool()), boolInt(b.Bool()))
	}
	if ta, ok := a.Interface().(time.Time); ok {
		return sign * ta.Compare(b.Interface().(time.Time))
	}
	// Arrays and objects: some fixed order, that of their JSON.
	ja, _ := json.Marshal(a.Interface())
	jb, _ := json.Marshal(b.Interface())
	return sign * strings.Compare(string(ja), string(jb))
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
