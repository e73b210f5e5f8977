package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// Recorder is a source that keeps every page read through it.
type Recorder struct {
	source.Source
	meta  Meta
	pages map[mem.Phys]mem.BundlePage
	full  bool
}

// Record returns a source that reads through src and keeps what it reads. command
// is written into the bundle.
func Record(src source.Source, command []string) *Recorder {
	info := src.Info()
	return &Recorder{Source: src, pages: make(map[mem.Phys]mem.BundlePage), meta: Meta{
		Name: info.Name, Kind: info.Kind, Detail: info.Detail, Layout: info.Layout, CPUs: info.CPUs,
		Command: command, Begun: time.Now().UTC(),
	}}
}

// Registers reads the registers of the source below and keeps them.
func (r *Recorder) Registers(ctx context.Context) ([]source.Registers, error) {
	rr, ok := r.Source.(source.RegisterReader)
	if !ok {
		return nil, errors.New("this source has no registers")
	}
	regs, err := rr.Registers(ctx)
	if err == nil {
		r.meta.Registers = regs
	}
	return regs, err
}

// Data passes on what the source below knows of holes.
func (r *Recorder) Data(from mem.Phys) (mem.Extent, bool) {
	if h, ok := r.Source.(source.HoleFinder); ok {
		return h.Data(from)
	}
	for _, e := range r.Info().Layout {
		if from < e.End() {
			start := max(from, e.Start)
			return mem.Extent{Start: start, Size: uint64(e.End() - start)}, true
		}
	}
	return mem.Extent{}, false
}

// Peek implements source.Peeker: a search through all of RAM is not an answer's memory.
func (r *Recorder) Peek(ctx context.Context, reads []mem.Read) error {
	return r.Source.ReadPhys(ctx, reads)
}

// ReadPhys reads whole pages from the source below, keeps them, and answers from
// them. A page read in full again replaces what was kept; a part of it does not,
// since the answer was computed from the page and the part only checked it.
func (r *Recorder) ReadPhys(ctx context.Context, reads []mem.Read) error {
	if r.full {
		return fmt.Errorf("record: more than %d pages", mem.MaxBundlePages)
	}
	wide := make([]mem.Read, len(reads))
	for i, rd := range reads {
		start := rd.Addr.Page()
		size := (uint64(rd.Addr-start) + uint64(len(rd.Buf)) + mem.PageSize - 1) &^ (mem.PageSize - 1)
		wide[i] = mem.Read{Addr: start, Buf: make([]byte, size)}
	}
	if err := r.Source.ReadPhys(ctx, wide); err != nil {
		return err
	}
	for i := range reads {
		rd, w := &reads[i], &wide[i]
		off := int(rd.Addr - w.Addr)
		rd.N, rd.Err = 0, nil
		if w.N > off {
			rd.N = copy(rd.Buf, w.Buf[off:w.N])
		}
		if rd.N < len(rd.Buf) {
			rd.Err = w.Err
		}
		r.keep(w, off != 0 || len(rd.Buf) < mem.PageSize)
	}
	return nil
}

func (r *Recorder) keep(w *mem.Read, part bool) {
	for at := 0; at < len(w.Buf); at += mem.PageSize {
		a := w.Addr + mem.Phys(at)
		if _, have := r.pages[a]; have && part {
			continue
		}
		if len(r.pages) >= mem.MaxBundlePages {
			r.full = true
			return
		}
		p := mem.BundlePage{}
		if w.N > at {
			p.Data = w.Buf[at:min(w.N, at+mem.PageSize):min(w.N, at+mem.PageSize)]
		}
		if len(p.Data) < mem.PageSize {
			p.Err = w.Err
		}
		r.pages[a] = p
	}
}

// Bundle returns what was recorded.
func (r *Recorder) Bundle() (*mem.Bundle, error) {
	if r.full {
		return nil, fmt.Errorf("record: more than %d pages", mem.MaxBundlePages)
	}
	r.meta.Ended = time.Now().UTC()
	meta, err := json.Marshal(r.meta)
	if err != nil {
		return nil, err
	}
	return &mem.Bundle{Meta: meta, Pages: r.pages}, nil
}
