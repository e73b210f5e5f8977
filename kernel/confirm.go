package kernel

import (
	"regexp"
	"slices"

	"github.com/umbravm/umbra/paging"
)

// looks is how often a running machine is looked at before what does not add up in it
// is reported: what is read first and what is read last are of different moments.
const looks = 5

// Confirm runs list, which makes the answer. When it fails or has something to report
// on a machine that runs, list is run again from memory read anew, and only what it
// reports each time is a finding. The answer is that of the last run.
func (v *View) Confirm(list func() error) error {
	from := len(v.findings)
	err := list()
	known := slices.Clone(v.findings[from:])
	for look := 1; look < looks && (err != nil || len(known) > 0) && v.renew(); look++ {
		v.findings = v.findings[:from]
		err = list()
		if now := v.findings[from:]; err == nil {
			known = both(known, now)
		}
		if !v.snap.News() {
			break // the same memory gives the same each time
		}
	}
	v.findings = append(v.findings[:from], known...)
	return err
}

// renew has all memory read anew, unless it cannot have changed.
func (v *View) renew() bool {
	if !v.src.Info().Live || !v.snap.Renew() {
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
