package dump

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
)

// Limits and sizes of the flattened format, which makedumpfile and QEMU write
// where they cannot seek: a header of 4096 bytes (signature, type and version),
// then records of two signed big-endian 64-bit words, offset and size, and size
// bytes that belong at offset. An offset of -1 ends the file. Records may
// overwrite each other.
const (
	flatHeader     = 4096
	flatRecord     = 16
	flatType       = 1
	flatVersion    = 1
	maxFlatRecords = 1 << 21 // 24 bytes of memory each; QEMU writes one per 16 KiB or so
)

// piece is a run of bytes of the unfolded file.
type piece struct{ off, size, at int64 } // at: where they stand in the flattened file

func (p piece) end() int64 { return p.off + p.size }

// flat is what a flattened file unfolds to. What no record wrote is zeros in a
// complete file and unknown in one that was cut off.
type flat struct {
	under  storage
	pieces []piece // ascending, not overlapping
	length int64
	absent uint64 // bytes that are missing of the last record or the end mark
}

// openFlat indexes a flattened file. It reads the headers of all records.
func openFlat(ctx context.Context, st storage) (*flat, error) {
	head, err := readBounded(st, "the flattened header", 0, 32, 32)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if typ, v := be.Uint64(head[16:]), be.Uint64(head[24:]); typ != flatType || v != flatVersion {
		return nil, fmt.Errorf("%w: flattened file of type %d, version %d; type %d, version %d are read",
			ErrFormat, typ, v, flatType, flatVersion)
	}
	f := &flat{under: st}
	if err := f.index(ctx); err != nil {
		return nil, err
	}
	f.pieces = overlay(f.pieces)
	return f, nil
}

func (f *flat) index(ctx context.Context) error {
	be, at, size := binary.BigEndian, int64(flatHeader), f.under.size()
	var head [flatRecord]byte
	for n := 0; ; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if at > size-flatRecord {
			f.absent = uint64(at + flatRecord - size)
			return nil
		}
		if _, err := readFull(f.under, head[:], at); err != nil {
			return err
		}
		p := piece{off: int64(be.Uint64(head[:])), size: int64(be.Uint64(head[8:])), at: at + flatRecord}
		switch {
		case p.off == -1:
			return nil
		case p.off < 0 || p.size < 0 || p.size > math.MaxInt64-p.off:
			return fmt.Errorf("%w: flattened record at offset %#x has offset %d and size %d", ErrFormat, at, p.off, p.size)
		case n == maxFlatRecords:
			return fmt.Errorf("%w: more than %d flattened records", ErrFormat, maxFlatRecords)
		}
		if p.size > size-p.at {
			f.absent = uint64(p.size - (size - p.at))
			p.size = size - p.at
		}
		at = p.at + p.size
		if p.size > 0 {
			f.pieces = append(f.pieces, p)
			f.length = max(f.length, p.end())
		}
		if f.absent > 0 {
			return nil
		}
	}
}

// overlay sorts pieces by offset and cuts away what later ones overwrite. A
// piece is later than those that stand before it in the flattened file.
func overlay(pieces []piece) []piece {
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.at, b.at)) })
	disjoint := true
	for i := 1; i < len(pieces) && disjoint; i++ {
		disjoint = pieces[i-1].end() <= pieces[i].off
	}
	if disjoint {
		return pieces
	}
	var out []piece
	open := &latest{} // the pieces that have begun at pos, the last written on top
	for pos, next := int64(0), 0; next < len(pieces) || open.Len() > 0; {
		if open.Len() == 0 {
			pos = pieces[next].off
		}
		for ; next < len(pieces) && pieces[next].off <= pos; next++ {
			heap.Push(open, pieces[next])
		}
		top := (*open)[0]
		if top.end() <= pos {
			heap.Pop(open)
			continue
		}
		end := top.end()
		if next < len(pieces) {
			end = min(end, pieces[next].off)
		}
		p := piece{off: pos, size: end - pos, at: top.at + pos - top.off}
		if n := len(out); n > 0 && out[n-1].end() == p.off && out[n-1].at+out[n-1].size == p.at {
			out[n-1].size += p.size
		} else {
			out = append(out, p)
		}
		pos = end
	}
	return out
}

// latest is a heap of pieces, the one written last on top.
type latest []piece

func (l latest) Len() int           { return len(l) }
func (l latest) Less(i, j int) bool { return l[i].at > l[j].at }
func (l latest) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *latest) Push(x any)        { *l = append(*l, x.(piece)) }
func (l *latest) Pop() any {
	old := *l
	x := old[len(old)-1]
	*l = old[:len(old)-1]
	return x
}

func (f *flat) size() int64 { return f.length }
func (f *flat) cut() uint64 { return f.absent }

// nextData implements storage. Records are data.
func (f *flat) nextData(off, end int64) (int64, int64, bool) { return off, end, off < end }

// ReadAt implements io.ReaderAt.
func (f *flat) ReadAt(buf []byte, off int64) (int, error) {
	n := 0
	i := sort.Search(len(f.pieces), func(i int) bool { return f.pieces[i].end() > off })
	for n < len(buf) {
		at := off + int64(n)
		if i == len(f.pieces) {
			return n, io.EOF
		}
		p := f.pieces[i]
		if at < p.off {
			if f.absent > 0 {
				return n, ErrTruncated
			}
			k := min(int64(len(buf)-n), p.off-at)
			clear(buf[n : n+int(k)])
			n += int(k)
			continue
		}
		k := min(int64(len(buf)-n), p.end()-at)
		got, err := readFull(f.under, buf[n:n+int(k)], p.at+at-p.off)
		n += got
		if err != nil {
			return n, err
		}
		i++
	}
	return n, nil
}
