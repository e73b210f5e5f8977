package ksym

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/umbravm/umbra/mem"
)

// budget bounds a search, whose cost a guest can drive up with look-alikes: how
// many more of each step may be taken.
type budget struct {
	anchors int // places that might be a token table
	tables  int // token tables that agree with an index
	runs    int // places before one that might be markers
	tails   int // places where names might begin, judged by how they end
	loads   int // names that end right: walked from the beginning
}

var fullBudget = budget{anchors: 1 << 12, tables: 16, runs: 1 << 8, tails: 1 << 14, loads: 1 << 5}

var errTooMany = errors.New("too many look-alikes")

// take spends one of what is left.
func take(left *int) error {
	if *left <= 0 {
		return errTooMany
	}
	*left--
	return nil
}

// anchor is a piece every kernel's token table has: digits occur in names, so
// their codes, 48 to 57, stand for themselves.
var anchor = []byte("\x000\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

const anchorToken = '0'

// Find finds the symbol table of a kernel by its structure alone, and proves it.
// The error wraps ErrNotFound when there is none.
func Find(img Image) (*Table, error) {
	v, err := newView(img)
	if err != nil {
		return nil, err
	}
	f := finder{view: v, budget: fullBudget}
	if err = f.sample(); err == nil && f.found == nil {
		err = f.scan(v.base, v.base+mem.Virt(v.size))
	}
	switch {
	case f.found != nil:
		return f.found, nil
	case err == nil:
		err = f.why
	}
	if err == nil {
		return nil, fmt.Errorf("%w in the kernel image at %v, %#x bytes", ErrNotFound, v.base, v.size)
	}
	return nil, fmt.Errorf("%w in the kernel image at %v, %#x bytes: %w", ErrNotFound, v.base, v.size, err)
}

// finder is a search under way. It ends when found is set or an error returned.
type finder struct {
	view
	budget
	found *Table
	why   error // the last reason to turn a token table down
}

// scan looks for anchors from lo to hi.
func (f *finder) scan(lo, hi mem.Virt) error {
	const chunk = 256 << 10
	buf := make([]byte, chunk+len(anchor)-1)
	for at := lo; at < hi; {
		want := min(uint64(len(buf)), uint64(hi-at))
		p := f.readUpTo(buf[:want], at)
		if err := f.scanChunk(p, at); err != nil || f.found != nil {
			return err
		}
		switch next := at + mem.Virt(len(p)); {
		case uint64(len(p)) < want: // a hole: on to the next page
			at = next.Page() + mem.PageSize
		case next >= hi:
			return nil
		default:
			at = next - mem.Virt(len(anchor)-1)
		}
		if at < lo { // wrapped
			return nil
		}
	}
	return nil
}

func (f *finder) scanChunk(p []byte, at mem.Virt) error {
	for pos := 0; ; {
		i := bytes.Index(p[pos:], anchor)
		if i < 0 {
			return nil
		}
		pos += i + 1
		if err := take(&f.anchors); err != nil {
			return err
		}
		l, ok := f.tokenTable(at + mem.Virt(pos))
		if !ok {
			continue
		}
		if err := take(&f.tables); err != nil {
			return err
		}
		t, err := f.around(l)
		if err == nil {
			f.found = t
			return nil
		}
		if errors.Is(err, errTooMany) {
			return err
		}
		f.why = fmt.Errorf("token table at %v: %w", l.TokenTable, err)
	}
}

// tokenTable takes at to be token '0' of a token table and finds where the table
// begins and where its index lies behind it.
func (f *finder) tokenTable(at mem.Virt) (Locations, bool) {
	var buf [8 << 10]byte // real tables have about 1 KB
	p := f.readUpTo(buf[:], at)
	end := 0
	for range tokenCount - anchorToken {
		n := bytes.IndexByte(p[end:min(len(p), end+maxToken+1)], 0)
		if n < 0 {
			return Locations{}, false
		}
		end += n + 1
	}
	for _, align := range []uint64{4, 8} {
		index := alignUp(at+mem.Virt(end), align)
		off := int(index - at)
		if len(p) < off+tokenIndexBytes || !allZero(p[end:off]) {
			continue
		}
		table := at - mem.Virt(binary.LittleEndian.Uint16(p[off+2*anchorToken:]))
		if _, err := loadTokens(f.view, table, index); err == nil {
			return Locations{TokenTable: table, TokenIndex: index}, true
		}
	}
	return Locations{}, false
}

// around finds the other parts of a table from its token table on, and proves
// them. Before the tokens lie the number of symbols, names and markers, in 6.1
// to 6.4 with kallsyms_seqs_of_names between markers and tokens.
func (f *finder) around(l Locations) (*Table, error) {
	why := malformed("no markers before it")
	for m := range f.markerRuns(l.TokenTable) {
		if err := take(&f.runs); err != nil {
			return nil, err
		}
		named, err := f.namesBefore(m)
		if err != nil {
			return nil, err
		}
		for _, with := range named {
			if err := take(&f.loads); err != nil {
				return nil, err
			}
			with.TokenTable, with.TokenIndex = l.TokenTable, l.TokenIndex
			t, err := f.withAddresses(with)
			if err == nil {
				return t, nil
			}
			why = err
		}
	}
	return nil, why
}

// withAddresses finds the address table, newest layout first: since 6.5 it lies
// behind the tokens, before that in front of the number of symbols. Exactly one
// way to read it may make sense.
func (f *finder) withAddresses(l Locations) (*Table, error) {
	n, err := loadCount(f.view, l.NumSyms)
	if err != nil {
		return nil, err
	}
	t, err := loadNamed(f.view, l, n)
	if err != nil {
		return nil, err
	}
	behind := l.TokenIndex + tokenIndexBytes
	size := mem.Virt(4 * n)
	base := l.NumSyms - 8

	pcRelative, baseBehind, baseBefore, plain := t.loc, t.loc, t.loc, t.loc
	pcRelative.Offsets = alignUp(behind, 4)
	baseBehind.Offsets = alignUp(behind, 8)
	baseBehind.RelativeBase = alignUp(baseBehind.Offsets+size, 8)
	baseBefore.Offsets = base - alignUp(size, 8)
	baseBefore.RelativeBase = base
	plain.Addresses = l.NumSyms - 2*size

	fits, found := 0, parts{}
	for _, with := range []Locations{pcRelative, baseBehind, baseBefore, plain} {
		one := *t
		one.loc = with
		if e := one.loadAddresses(f.view, n); e != nil {
			err = e
			continue
		}
		found = one
		fits++
	}
	switch fits {
	case 0:
		return nil, fmt.Errorf("no address table fits, the last: %w", err)
	case 1:
		return &Table{parts: found}, nil
	}
	return nil, malformed("%d address tables fit", fits)
}

func allZero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}
