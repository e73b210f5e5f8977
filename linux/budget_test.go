package linux

import (
	"context"
	"strings"
	"testing"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// TestTextIsBounded gives more rows long arguments than an answer may hold.
func TestTextIsBounded(t *testing.T) {
	k := attachRecorded(t, "7.2")
	v := k.View(context.Background(), mem.Options{})
	long := strings.Repeat("x", 1<<20)
	const fit = maxAllText>>20 - 1
	rows, held := make([]taskRow, fit+5), make([]uint64, fit+5)
	total := budget{maxAllText}
	for look := range 2 { // rows that are read again do not count twice
		err := v.Each(len(rows), func(i int, w *kernel.Walk) {
			total.back(&held[i])
			rows[i] = taskRow{}
			rows[i].Args, rows[i].Exe = []string{long}, &long
			if i%2 == 1 {
				rows[i].Exe = nil
			}
			rows[i].bound(w, &total, &held[i])
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var kept, dropped int
		for i := range rows {
			if n := len(rows[i].Args); (n == 0) != (len(rows[i].Errors) > 0) || n == 0 && rows[i].Exe != nil {
				t.Errorf("row %d: %d arguments, errors %q", i, n, rows[i].Errors)
			}
			if kept++; rows[i].Args == nil {
				kept--
				dropped++
			}
		}
		if kept < fit/2 || dropped == 0 {
			t.Errorf("look %d: %d rows kept, %d dropped", look, kept, dropped)
		}
	}
}
