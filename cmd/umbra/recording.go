package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source/replay"
)

// recording is a recorded machine that knows which pages were asked for in vain: an
// answer that lacks them is none, however well it looks.
type recording struct {
	*replay.Source
	missed map[mem.Phys]bool
}

// ReadPhys implements mem.Reader.
func (r *recording) ReadPhys(ctx context.Context, reads []mem.Read) error {
	err := r.Source.ReadPhys(ctx, reads)
	for i := range reads {
		if rd := &reads[i]; errors.Is(rd.Err, mem.ErrNotRecorded) {
			r.missed[(rd.Addr + mem.Phys(rd.N)).Page()] = true
		}
	}
	return err
}

// forget begins a new answer.
func (r *recording) forget() {
	if r != nil {
		clear(r.missed)
	}
}

// err returns what the answer lacks, nil when that is nothing.
func (r *recording) err() error {
	if r == nil || len(r.missed) == 0 {
		return nil
	}
	pages := "1 page that this answer needs was"
	if n := len(r.missed); n > 1 {
		pages = fmt.Sprintf("%d pages that this answer needs were", n)
	}
	return r.hint(fmt.Errorf("recording of %s: %s not recorded", r.Info().Name, pages))
}

// hint adds to an error what the recording can answer.
func (r *recording) hint(err error) error {
	hint := "record it with this command: umbra record TARGET FILE -- COMMAND"
	if made := strings.Join(r.Meta().Command, " "); made != "" {
		hint = "it was recorded with -- " + made + "; other answers need a recording of their own"
	}
	return &hintError{err, hint}
}

// notRecorded adds to an error that stems from a page that a recording lacks what
// the recording can answer.
func (a *app) notRecorded(err error) error {
	if a.reading == nil || !errors.Is(err, mem.ErrNotRecorded) {
		return err
	}
	return a.reading.hint(err)
}
