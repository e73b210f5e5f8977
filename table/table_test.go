package table

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type ref struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
}

type row struct {
	PID     int        `json:"pid"`
	Name    string     `json:"name"`
	RSS     *uint64    `json:"rss_bytes"`
	CPU     float64    `json:"cpu_seconds"`
	Started *time.Time `json:"start_time"`
	Args    []string   `json:"args"`
	Refs    []ref      `json:"processes"`
	Note    string     `json:"note,omitempty"`
	Moved   bool       `json:"moved"`
	Errors  []string   `json:"errors"`
	Inner   int        `json:"-"`
}

func sample() []row {
	rss := uint64(5 << 20)
	at := time.Date(2026, 11, 20, 8, 9, 10, 0, time.UTC)
	return []row{
		{PID: 10, Name: "sshd", RSS: &rss, CPU: 61, Started: &at, Args: []string{"sshd", "-D"}, Refs: []ref{{1, "a"}}, Errors: []string{}},
		{PID: 9, Name: "bad\x1b[31m", Args: nil, Moved: true, Note: "x"},
		{PID: 100, Name: "", RSS: new(uint64), Args: []string{}, Errors: []string{"exe: gone"}},
	}
}

func write[T any](t *testing.T, rows []T, opts Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, rows, opts); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestText(t *testing.T) {
	got := write(t, sample(), Options{Default: []string{"pid", "name", "rss_bytes", "cpu_seconds", "start_time", "args", "processes"}})
	want := `PID  NAME          RSS    CPU  START_TIME            ARGS     PROCESSES
 10  sshd         5.0M  1m01s  2026-11-20 08:09:10Z  sshd -D  1/a
  9  bad\x1b[31m     -  0.00s  -                     -        -          !
100  -               0  0.00s  -                     -        -          !
! 1 of 3 rows kept changing while they were read: see moved in -o json
! 1 of 3 rows could not be read in full: see errors in -o json; the first is exe: gone
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// Columns can be asked for by what stands above them, whatever the format.
func TestHeads(t *testing.T) {
	opts := Options{Columns: []string{"RSS", "Pid", "name"}, Sort: "-rss", Heads: map[string]string{"name": "called"}}
	if got := write(t, sample()[:1], opts); !strings.HasPrefix(got, " RSS  PID  CALLED\n5.0M   10  sshd\n") {
		t.Errorf("table:\n%s", got)
	}
	opts.Columns, opts.Format = []string{"called", "CPU"}, CSV
	if got := write(t, sample()[:1], opts); got != "name,cpu_seconds\nsshd,61\n" {
		t.Errorf("csv:\n%s", got)
	}
	// A key keeps its unit where another has the name without it.
	type ram struct {
		Size  uint64 `json:"memory_bytes"`
		Where string `json:"memory"`
	}
	if got := write(t, []ram{{4096, "file"}}, Options{}); got != "MEMORY_BYTES  MEMORY\n        4.0K  file\n" {
		t.Errorf("table:\n%s", got)
	}
	if err := Check[row](Options{Columns: []string{"pid", "rss", "rss_bytes"}}); err == nil || !strings.Contains(err.Error(), "rss_bytes is named twice") {
		t.Errorf("a column named twice: %v", err)
	}
}

// What an object lacks is said below it.
func TestObjectDoubts(t *testing.T) {
	for i, want := range []string{"", "! this kept changing while it was read\n", "! exe: gone\n"} {
		var b strings.Builder
		if err := WriteObject(&b, sample()[i], Options{Default: []string{"pid"}}); err != nil {
			t.Fatal(err)
		}
		if _, after, _ := strings.Cut(b.String(), "\n"); after != want {
			t.Errorf("row %d: %q", i, after)
		}
	}
}

func TestCutMiddle(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"[::ffff:127.0.0.1]:7001", 18, "[::ffff:…0.1]:7001"},
		{"short", 5, "short"}, {"shorts", 5, "sh…ts"}, {"shorts", 2, "s…"}, {"abc", 0, ""},
		{"世界世界世界", 6, "世…界"}, {"e\u0301e\u0301e\u0301e\u0301", 3, "e\u0301…e\u0301"},
	} {
		if got := cutMiddle(c.in, c.n); got != c.want || width(got) > c.n {
			t.Errorf("cutMiddle(%q, %d) = %q, not %q", c.in, c.n, got, c.want)
		}
	}
}

func TestTextFits(t *testing.T) {
	rows := []row{{PID: 1234567, Name: strings.Repeat("名", 30), Args: []string{strings.Repeat("x", 500)}}}
	opts := Options{Default: []string{"pid", "name", "args"}, Wide: []string{"args"}, Width: 60}
	for line := range strings.Lines(write(t, rows, opts)) {
		line = strings.TrimSuffix(line, "\n")
		if w := width(line); w > 60 {
			t.Errorf("%d columns: %q", w, line)
		}
		if strings.HasPrefix(line, "1") && !strings.HasPrefix(line, "1234567  ") {
			t.Errorf("a number was cut: %q", line)
		}
	}
}

func TestJSON(t *testing.T) {
	out := write(t, sample(), Options{Format: JSON, Default: []string{"pid"}})
	var got []map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if len(got) != 3 || got[1]["name"] != "bad\x1b[31m" || got[1]["rss_bytes"] != nil || got[0]["note"] != nil || got[1]["note"] != "x" {
		t.Errorf("got %v", got)
	}
	keys, err := Keys[row]()
	if err != nil {
		t.Fatal(err)
	}
	for i, object := range got {
		if len(object) != len(keys) {
			t.Errorf("object %d has %d keys, not %d", i, len(object), len(keys))
		}
	}
	// The order of keys is the struct's.
	at := -1
	for _, k := range keys {
		next := strings.Index(out, `"`+k+`":`)
		if next < at {
			t.Errorf("key %s is out of order", k)
		}
		at = next
	}
	if got := write(t, sample()[:1], Options{Format: JSON, Columns: []string{"name", "pid"}}); got != `[{"name":"sshd","pid":10}]`+"\n" {
		t.Errorf("two columns: %s", got)
	}
	if got := write(t, []row{}, Options{Format: JSON}); got != "[]\n" {
		t.Errorf("no rows: %q", got)
	}
}

func TestCSV(t *testing.T) {
	out := write(t, sample(), Options{Format: CSV, Columns: []string{"pid", "args", "rss_bytes", "start_time", "processes", "note"}})
	got, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"pid", "args", "rss_bytes", "start_time", "processes", "note"},
		{"10", "sshd -D", "5242880", "2026-11-20T08:09:10Z", `[{"pid":1,"comm":"a"}]`, ""},
		{"9", "", "", "", "", "x"},
		{"100", "", "0", "", "", ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("csv (-want +got):\n%s", diff)
	}
}

func TestSort(t *testing.T) {
	for by, want := range map[string]string{
		"pid": "9 10 100", "-pid": "100 10 9", "name": "100 9 10",
		"rss_bytes": "100 10 9", "-rss_bytes": "10 100 9", "": "10 9 100", "start_time": "10 9 100",
	} {
		got := strings.Fields(write(t, sample(), Options{Format: CSV, Columns: []string{"pid"}, Sort: by}))
		if s := strings.Join(got[1:], " "); s != want {
			t.Errorf("sorted by %q: %s, want %s", by, s, want)
		}
	}
	rows := sample()
	write(t, rows, Options{Sort: "pid"})
	if rows[0].PID != 10 {
		t.Error("sorting changed the caller's rows")
	}
}

func TestWrongUse(t *testing.T) {
	for _, opts := range []Options{{Columns: []string{"nosuch"}}, {Sort: "nosuch"}, {Sort: "-"}, {Columns: []string{"-"}}} {
		if err := Check[row](opts); !errors.Is(err, ErrColumn) {
			t.Errorf("Check(%+v) = %v", opts, err)
		}
		if err := Write(io.Discard, sample(), opts); !errors.Is(err, ErrColumn) {
			t.Errorf("Write(%+v) = %v", opts, err)
		}
	}
	if err := Check[row](Options{Format: "xml"}); err == nil {
		t.Error("format xml was accepted")
	}
	if err := Write(io.Discard, []int{1}, Options{}); err == nil {
		t.Error("rows that are no structs were accepted")
	}
	if err := Write(broken{}, sample(), Options{}); err == nil {
		t.Error("a writer's error was lost")
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü 名":           "plain ü 名",
		"a\nb\tc\r":           `a\nb\tc\r`,
		"\x1b]0;title\x07":    `\x1b]0;title\x07`,
		"\xff\xfe":            `\xff\xfe`,
		"\u009b31m":           `\x9b31m`,
		"abc\u202etxt.exe":    `abc\u{202e}txt.exe`,
		"zero\u200bwidth\x7f": `zero\u{200b}width\x7f`,
		"\U000e0041":          `\u{e0041}`,
	} {
		if got := Safe(in); got != want {
			t.Errorf("Safe(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		s    string
		n    int
		want string
	}{{"abcdef", 6, "abcdef"}, {"abcdef", 5, "abcd…"}, {"abcdef", 1, "…"}, {"名名名", 4, "名…"}, {"abc", 0, "abc"}} {
		if got := Cut(c.s, c.n); got != c.want {
			t.Errorf("Cut(%q, %d) = %q, want %q", c.s, c.n, got, c.want)
		}
	}
}

func TestHuman(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 1023: "1023", 1024: "1.0K", 10 << 10: "10K", 5 << 30: "5.0G"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%v) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[float64]string{0.421: "0.42s", 187: "3m07s", 18720: "5h12m", 86400 * 12.2: "12d04h", -1: "-1s", 1e300: "1e+300s"} {
		if got := Seconds(n); got != want {
			t.Errorf("Seconds(%v) = %s, want %s", n, got, want)
		}
	}
}

// Whatever a machine puts into a row, no control character but the newline
// reaches the terminal, and JSON stays JSON.
func FuzzSafe(f *testing.F) {
	for _, s := range []string{"sh", "\x1b[2J", "\u202e\xff", "a\nb", "\u009b", "\U000e0041", `\"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rows := []row{{Name: s, Args: []string{s, s}, Errors: []string{s}}}
		for _, format := range Formats[:2] {
			var b bytes.Buffer
			if err := Write(&b, rows, Options{Format: format, Width: 40}); err != nil {
				t.Fatal(err)
			}
			for _, r := range b.String() {
				if r != '\n' && unsafeRune(r) {
					t.Fatalf("%s of %q holds %U", format, s, r)
				}
			}
			if format == JSON && !json.Valid(b.Bytes()) {
				t.Fatalf("not JSON: %s", b.Bytes())
			}
		}
		if again := Safe(Safe(s)); again != Safe(s) {
			t.Fatalf("Safe(%q) is not safe", s)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	rows := make([]row, 10000)
	for i := range rows {
		rss := uint64(i) << 12
		at := time.Unix(int64(i), 0)
		rows[i] = row{PID: i, Name: fmt.Sprint("process-", i), RSS: &rss, Started: &at, Args: []string{"/usr/bin/daemon", "--flag", "value"}}
	}
	for _, f := range Formats {
		b.Run(string(f), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Write(io.Discard, rows, Options{Format: f, Width: 120}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
