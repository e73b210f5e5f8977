package main

import (
	"fmt"
	"strings"
	"time"
)

// result is what the tests said on one machine.
type result struct {
	machine string
	passed  []string // names of tests, without "Test"
	broken  []string
	output  map[string][]string // of the broken ones
	rest    []string            // lines of no test: a panic, a machine that did not boot
	failed  bool                // the program's exit status
	took    time.Duration
}

// ok tells whether tests ran and all of them agreed.
func (r result) ok() bool { return !r.failed && len(r.broken) == 0 && len(r.passed) > 0 }

// parse reads the output of a test program run with -test.v.
func parse(out string) result {
	r := result{output: map[string][]string{}}
	test := ""
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		name, begun := strings.CutPrefix(line, "=== RUN   Test")
		if begun {
			test, _, _ = strings.Cut(name, "/")
			continue
		}
		if verdict, name, ok := outcome(line); ok {
			if verdict == "PASS" {
				r.passed = append(r.passed, name)
				delete(r.output, name)
			} else {
				r.broken = append(r.broken, name)
			}
			test = ""
			continue
		}
		if test == "" {
			r.rest = append(r.rest, line)
		} else {
			r.output[test] = append(r.output[test], line)
		}
	}
	if test != "" { // the program ended inside of it
		r.broken = append(r.broken, test)
	}
	return r
}

// outcome reads "--- PASS: TestTasks (1.23s)"; those of subtests are indented.
func outcome(line string) (verdict, name string, ok bool) {
	rest, ok := strings.CutPrefix(line, "--- ")
	if !ok {
		return "", "", false
	}
	verdict, rest, ok = strings.Cut(rest, ": Test")
	name, _, _ = strings.Cut(rest, " ")
	return verdict, name, ok
}

// mostLines bounds what is printed of a failed test.
const mostLines = 25

// failures returns the output of what did not agree.
func (r result) failures() string {
	var b strings.Builder
	seen := map[string]bool{}
	section := func(title string, lines []string) {
		fmt.Fprintf(&b, "--- %s\n", title)
		all := strings.Join(lines, "\n")
		if seen[all] && len(lines) > 0 { // a machine that does not boot fails every test alike
			fmt.Fprintln(&b, "    the same again")
			return
		}
		seen[all] = true
		for _, l := range lines[:min(len(lines), mostLines)] {
			fmt.Fprintf(&b, "    %s\n", l)
		}
		if more := len(lines) - mostLines; more > 0 {
			fmt.Fprintf(&b, "    … %d more lines\n", more)
		}
	}
	for _, name := range r.broken {
		section("Test"+name, r.output[name])
	}
	if r.failed && len(r.broken) == 0 || len(r.passed)+len(r.broken) == 0 {
		section("no test", r.rest)
	}
	return b.String()
}

func (r result) String() string {
	verdict := "ok  "
	if !r.ok() {
		verdict = "FAIL"
	}
	s := fmt.Sprintf("%s %-60s %2d of %2d %4.0fs", verdict, r.machine, len(r.passed), len(r.passed)+len(r.broken), r.took.Seconds())
	if len(r.broken) > 0 {
		s += "  not: " + strings.Join(r.broken, " ")
	}
	return s
}

// table returns a line per machine and the sum.
func table(all []result) string {
	var b strings.Builder
	good := 0
	for _, r := range all {
		fmt.Fprintln(&b, r)
		if r.ok() {
			good++
		}
	}
	fmt.Fprintf(&b, "%d of %d machines agree with their own /proc\n", good, len(all))
	return b.String()
}
