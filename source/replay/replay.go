// Package replay reads a machine back from a page bundle: the pages that one
// command touched, recorded while it ran. It is evidence to keep, and the fixture
// format of the tests.
package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// Meta is what a bundle says of itself besides its pages.
type Meta struct {
	Name      string             `json:"name"`
	Kind      string             `json:"kind"`   // of the source recorded
	Detail    string             `json:"detail"` // how its memory was reached
	Layout    mem.Layout         `json:"layout"`
	CPUs      int                `json:"cpus"`
	Registers []source.Registers `json:"registers,omitempty"`
	Command   []string           `json:"command"` // what was run while recording
	Begun     time.Time          `json:"begun"`
	Ended     time.Time          `json:"ended"`
}

// Source is an open bundle.
type Source struct {
	bundle *mem.Bundle
	pages  []mem.Phys // of the bundle, ascending
	meta   Meta
	info   source.Info
	closed bool
}

// Open reads the bundle in a file.
func Open(_ context.Context, path string) (*Source, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := mem.DecodeBundle(f)
	if err != nil {
		return nil, fmt.Errorf("open recording %s: %w", path, err)
	}
	s, err := New(b)
	if err != nil {
		return nil, fmt.Errorf("open recording %s: %w", path, err)
	}
	if s.info.Name == "" {
		s.info.Name = filepath.Base(path)
	}
	return s, nil
}

// New returns a source that reads from b.
func New(b *mem.Bundle) (*Source, error) {
	var m Meta
	if err := json.Unmarshal(b.Meta, &m); err != nil {
		return nil, fmt.Errorf("%w: description: %w", mem.ErrBundle, err)
	}
	layout, err := mem.NewLayout(m.Layout...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", mem.ErrBundle, err)
	}
	pages := slices.Sorted(maps.Keys(b.Pages))
	return &Source{bundle: b, pages: pages, meta: m, info: source.Info{
		Kind:   "replay",
		Name:   m.Name,
		Detail: fmt.Sprintf("%d pages recorded from %s at %s", len(b.Pages), m.Kind, m.Begun.UTC().Format(time.RFC3339)),
		Layout: layout,
		Local:  true,
		CPUs:   m.CPUs,
	}}, nil
}

// Meta returns what the bundle says of itself.
func (s *Source) Meta() Meta { return s.meta }

// Info implements source.Source.
func (s *Source) Info() source.Info { return s.info }

// Close implements source.Source.
func (s *Source) Close() error { s.closed = true; return nil }

// Registers implements source.RegisterReader with the registers recorded.
func (s *Source) Registers(context.Context) ([]source.Registers, error) {
	if len(s.meta.Registers) == 0 {
		return nil, errors.New("no registers were recorded")
	}
	return s.meta.Registers, nil
}

// Data implements source.HoleFinder: what was not recorded is left out of scans.
func (s *Source) Data(from mem.Phys) (mem.Extent, bool) {
	i, _ := slices.BinarySearch(s.pages, from.Page())
	for ; i < len(s.pages); i++ {
		e, ok := s.info.Layout.Find(max(s.pages[i], from))
		if !ok {
			continue // the description does not call it RAM
		}
		run := mem.Extent{Start: s.pages[i], Size: mem.PageSize}
		for i++; i < len(s.pages) && s.pages[i] == run.End() && run.End()-e.Start < mem.Phys(e.Size); i++ {
			run.Size += mem.PageSize
		}
		return run, true
	}
	return mem.Extent{}, false
}

// ReadPhys implements mem.Reader. RAM that was not recorded is a fault with
// mem.ErrNotRecorded, never zeros.
func (s *Source) ReadPhys(ctx context.Context, reads []mem.Read) error {
	if s.closed {
		return os.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range reads {
		r := &reads[i]
		r.N, r.Err = s.read(r.Addr, r.Buf)
	}
	return nil
}

func (s *Source) read(addr mem.Phys, buf []byte) (n int, err error) {
	fault := func(a mem.Phys, err error) error {
		return &mem.Fault{Layer: mem.LayerPhysical, Addr: uint64(a), Err: err}
	}
	for n < len(buf) {
		a, ok := addr.Add(uint64(n))
		if !ok {
			return n, fault(addr, mem.ErrNotRAM)
		}
		if _, ok := s.info.Layout.Find(a); !ok {
			return n, fault(a, mem.ErrNotRAM)
		}
		pg, ok := s.bundle.Pages[a.Page()]
		if !ok {
			return n, fault(a, mem.ErrNotRecorded)
		}
		off := int(a - a.Page())
		if off >= len(pg.Data) {
			return n, fault(a, mem.ErrNotRAM)
		}
		n += copy(buf[n:], pg.Data[off:])
	}
	return n, nil
}
