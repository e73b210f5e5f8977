package kernel

import (
	"regexp"
	"slices"
	"time"

	"github.com/umbravm/umbra/paging"
)

// looks is how often a running machine is looked at before what does not add up in it
// is reported: what is read first and what is read last are of different moments.
// Between them it is given time, firstWait and then four times as much each: a virtual
// CPU can be stopped for some of it in the middle of a change.
const (
	looks     = 5
	firstWait = 2 * time.Millisecond
)

// Confirm runs list, which makes the answer. When it fails or has something to report
// on a machine that runs, list is run again from memory read anew, and only what it
// reports each time is a finding. The answer is that of the last run.
func (v *View) Confirm(list func() error) error {
	from := len(v.findings)
	err := list()
	known := slices.Clone(v.findings[from:])
	wait := firstWait
	for look := 1; look < looks && (err != nil || len(v.findings) > from) && v.renew(wait); look++ {
		v.findings = v.findings[:from]
		if err = list(); err == nil {
			known = both(known, v.findings[from:])
		}
		wait *= 4
	}
	v.findings = append(v.findings[:from], known...)
	return err
}

// renew has all memory read anew after a while, unless it cannot have changed.
func (v *View) renew(wait time.Duration) bool {
	if !v.src.Info().Live || v.snap.Err() != nil {
		return false
	}
	select {
	case <-time.After(wait):
	case <-v.snap.Context().Done():
	}
	if !v.snap.Renew() {
		return false
	}
	v.space = paging.NewCached(v.snap, v.root, v.levels)
	v.space.Know(v.image.runs)
	return true
}

// both returns the findings of now that were known before.
func both(known, now []Finding) (out []Finding) {
	before := make(map[Finding]bool, len(known))
	for _, f := range known {
		before[f.wording()] = true
	}
	for _, f := range now {
		if before[f.wording()] {
			out = append(out, f)
		}
	}
	return out
}

var number = regexp.MustCompile(`0x[0-9a-f]+|[0-9]+`)

// wording is f without the addresses and counts it tells: they can differ from one
// look to the next though what is wrong is the same.
func (f Finding) wording() Finding { return Finding{f.Object, number.ReplaceAllString(f.What, "N")} }
