package main

import (
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
)

func TestMachines(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range machines() {
		if _, err := lab.ParseConfig(m); err != nil || seen[m] {
			t.Errorf("%q: %v, twice %v", m, err, seen[m])
		}
		seen[m] = true
	}
}

func TestParse(t *testing.T) {
	const out = `=== RUN   TestTasks
=== RUN   TestTasks/6.1
--- PASS: TestTasks (1.23s)
    --- PASS: TestTasks/6.1 (1.23s)
=== RUN   TestMaps
=== RUN   TestMaps/6.1
    maps_test.go:1: pid 1: differs
--- FAIL: TestMaps (0.10s)
    --- FAIL: TestMaps/6.1 (0.10s)
FAIL
`
	r := parse(out)
	r.failed, r.machine = true, "6.1"
	if r.ok() || strings.Join(r.passed, " ") != "Tasks" || strings.Join(r.broken, " ") != "Maps" {
		t.Errorf("%+v", r)
	}
	if text := r.failures(); !strings.Contains(text, "differs") {
		t.Errorf("failures: %q", text)
	}
	if text := table([]result{r, {passed: []string{"Maps"}}}); !strings.Contains(text, "1 of 2 machines") {
		t.Errorf("table: %q", text)
	}
	// No test at all, and one that a panic ended.
	if r := parse("testing: warning: no tests to run\nPASS\n"); r.ok() || r.failures() == "" {
		t.Errorf("%+v", r)
	}
	if r := parse("=== RUN   TestTasks\npanic: no\n"); r.ok() || strings.Join(r.broken, " ") != "Tasks" {
		t.Errorf("%+v", r)
	}
}
