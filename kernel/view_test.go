package kernel

import (
	"context"
	"fmt"
	"testing"

	"github.com/umbravm/umbra/mem"
)

// TestFindOnce finds something in walks that are run several times.
func TestFindOnce(t *testing.T) {
	m := record(t, "7.2")
	k, err := Attach(context.Background(), m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	task, err := k.Symbol("init_task")
	if err != nil {
		t.Fatal(err)
	}
	v := k.View(context.Background(), mem.Options{Batch: true})
	runs := 0
	err = v.Each(2, func(i int, w *Walk) {
		runs++
		v.Find(fmt.Sprintf("walk %d", i), "looked")
		if i == 0 {
			w.Word(task)
			v.Find("walk 0", "read its word: %v", w.Err())
		}
	}, nil)
	if err != nil || runs < 3 {
		t.Fatalf("%d runs, %v: the test shows nothing", runs, err)
	}
	want := "[walk 0: looked walk 0: read its word: <nil> walk 1: looked]"
	if got := fmt.Sprint(v.Findings()); got != want {
		t.Errorf("found %v, want %v", got, want)
	}
	v.Find("later", "x")
	if n := len(v.Findings()); n != 4 {
		t.Errorf("%d findings", n)
	}
}
