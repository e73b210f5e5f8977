// Package paging translates guest-virtual addresses through the guest's own page
// tables. It knows the processor's formats and nothing of Linux.
package paging

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/umbravm/umbra/mem"
)

// Bits of an x86-64 page table entry (Intel SDM volume 3, 4.5; AMD APM volume 2, 5.3).
const (
	entryPresent = 1 << 0
	entryUser    = 1 << 2
	entryLarge   = 1 << 7
	entryNone    = 1 << 8                // _PAGE_PROTNONE, of entries that are not present
	entryAddr    = 0x000f_ffff_ffff_f000 // bits 51:12

	entries = 512
)

// Bits of control registers that choose the format.
const (
	CR0Paging = 1 << 31 // CR0.PG
	CR4LA57   = 1 << 12 // CR4.LA57: five levels
	EFERLMA   = 1 << 10 // EFER.LMA: long mode active
	CR3Addr   = entryAddr
)

// Space is one virtual address space: a page-table root read through a snapshot.
type Space struct {
	snap   *mem.Snapshot
	root   mem.Phys
	levels int
	tlb    []tlbEntry
	tables map[mem.Phys]struct{}
	known  []Mapping
	visits int
}

type tlbEntry struct {
	page  mem.Virt // page address | 1, so that the zero entry matches none
	frame mem.Phys
}

const tlbSize = 512

// New returns the address space whose top table is at root. levels is 4, or 5
// where CR4.LA57 is set. The low twelve bits of root (PCID, flags) are ignored.
func New(snap *mem.Snapshot, root mem.Phys, levels int) *Space {
	return &Space{snap: snap, root: root & CR3Addr, levels: levels}
}

// NewCached is New for a space that many addresses will be read through: it
// remembers translations, and the tables it walked (see Tables).
func NewCached(snap *mem.Snapshot, root mem.Phys, levels int) *Space {
	sp := New(snap, root, levels)
	sp.tlb = make([]tlbEntry, tlbSize)
	sp.tables = make(map[mem.Phys]struct{})
	return sp
}

// Know makes the space translate addresses in maps without walking the tables:
// for mappings that were walked before and do not change, such as the kernel's image.
func (sp *Space) Know(maps []Mapping) { sp.known = maps }

// Root returns the physical address of the top table.
func (sp *Space) Root() mem.Phys { return sp.root }

// Levels returns the depth of the tables, 4 or 5.
func (sp *Space) Levels() int { return sp.levels }

// Snapshot returns what the space reads through.
func (sp *Space) Snapshot() *mem.Snapshot { return sp.snap }

// Tables returns the physical addresses of the tables walked so far, in no order.
// Only a cached space keeps them.
func (sp *Space) Tables() []mem.Phys {
	out := make([]mem.Phys, 0, len(sp.tables))
	for p := range sp.tables {
		out = append(out, p)
	}
	return out
}

// NumTables returns how many tables Tables returns.
func (sp *Space) NumTables() int { return len(sp.tables) }

// Canonical tells whether a can be an address at all with this depth of tables.
func (sp *Space) Canonical(a mem.Virt) bool {
	shift := 64 - (12 + 9*sp.levels)
	return mem.Virt(int64(a)<<shift>>shift) == a
}

// Translate returns the physical address behind a.
func (sp *Space) Translate(a mem.Virt) (mem.Phys, error) {
	for i := range sp.known {
		if m := &sp.known[i]; uint64(a-m.Virt) < m.Size {
			return m.Phys + mem.Phys(a-m.Virt), nil
		}
	}
	off := mem.Phys(a & (mem.PageSize - 1))
	if sp.tlb == nil {
		p, _, err := sp.Walk(a)
		return p, err
	}
	e := &sp.tlb[(a>>mem.PageShift)%tlbSize]
	if e.page == a.Page()|1 {
		return e.frame | off, nil
	}
	p, _, err := sp.Walk(a)
	if err != nil {
		return 0, err
	}
	e.page, e.frame = a.Page()|1, p.Page()
	return p, nil
}

// Walk descends the tables to a. size is that of the page found, in bytes.
func (sp *Space) Walk(a mem.Virt) (p mem.Phys, size uint64, err error) {
	if !sp.Canonical(a) {
		return 0, 0, &mem.Fault{Layer: mem.LayerVirtual, Addr: uint64(a), Err: mem.ErrBadAddress}
	}
	table := sp.root
	for level := sp.levels; ; level-- {
		if sp.tables != nil {
			sp.tables[table] = struct{}{}
		}
		shift := uint(12 + 9*(level-1))
		slot := table + mem.Phys(uint64(a)>>shift&(entries-1))*8
		e, err := sp.snap.Uint64(slot)
		if err != nil {
			return 0, 0, tableFault(a, err)
		}
		if kept, ok := keptEntry(e, level, a); ok {
			e = kept
		}
		if e&entryPresent == 0 {
			return 0, 0, &mem.Fault{Layer: mem.LayerVirtual, Addr: uint64(a), Err: mem.ErrNotPresent}
		}
		if level == 1 || e&entryLarge != 0 {
			if level > 3 {
				return 0, 0, &mem.Fault{Layer: mem.LayerTable, Addr: uint64(slot), Err: mem.ErrBadTable}
			}
			size = 1 << shift
			return mem.Phys(e&entryAddr&^(size-1) | uint64(a)&(size-1)), size, nil
		}
		table = mem.Phys(e & entryAddr)
	}
}

// keptEntry returns what an entry of user space would be if the processor could use
// it: Linux takes pages away from the processor that it still has, to see on which
// NUMA node they are used, or because the process asked for PROT_NONE
// (arch/x86/include/asm/pgtable.h, pte_present and pmd_present). Their addresses are
// stored inverted (pgtable-invert.h, since 4.18).
func keptEntry(e uint64, level int, a mem.Virt) (uint64, bool) {
	switch {
	case e&entryPresent != 0 || a >= 1<<63:
		return 0, false
	case e&entryNone != 0 && level == 1, e&entryLarge != 0 && (level == 2 || level == 3):
		return e ^ entryAddr | entryPresent, true
	}
	return 0, false
}

// tableFault says that a could not be translated because a table could not be read.
func tableFault(a mem.Virt, err error) error {
	if errors.Is(err, mem.ErrPending) {
		return err
	}
	return fmt.Errorf("translate %v: %w", a, err)
}

// Read fills buf from a on. It returns the bytes read and, when they are fewer
// than len(buf), why. When pages are still to be fetched it asks for all of them
// at once.
func (sp *Space) Read(a mem.Virt, buf []byte) (int, error) {
	pending := false
	for n := 0; n < len(buf); {
		at, ok := a.Add(uint64(n))
		if !ok {
			return n, &mem.Fault{Layer: mem.LayerVirtual, Addr: uint64(a), Err: mem.ErrBadAddress}
		}
		chunk := min(len(buf)-n, int(mem.PageSize-at&(mem.PageSize-1)))
		m, err := sp.readPage(at, buf[n:n+chunk])
		switch {
		case err == mem.ErrPending:
			pending = true
		case err != nil:
			return n + m, err
		}
		n += chunk
	}
	if pending {
		return 0, mem.ErrPending
	}
	return len(buf), nil
}

// readPage is Read within one page.
func (sp *Space) readPage(a mem.Virt, buf []byte) (int, error) {
	p, err := sp.Translate(a)
	if err != nil {
		return 0, err
	}
	return sp.snap.Read(p, buf)
}

// Uint64 reads the little-endian word at a.
func (sp *Space) Uint64(a mem.Virt) (uint64, error) {
	if a&(mem.PageSize-1) > mem.PageSize-8 {
		var b [8]byte
		if _, err := sp.Read(a, b[:]); err != nil {
			return 0, err
		}
		return binary.LittleEndian.Uint64(b[:]), nil
	}
	p, err := sp.Translate(a)
	if err != nil {
		return 0, err
	}
	return sp.snap.Uint64(p)
}

// Mapping is a run of virtual addresses mapped onto contiguous physical ones.
type Mapping struct {
	Virt mem.Virt
	Phys mem.Phys
	Size uint64
	User bool // user mode may access it
}

// maxVisits bounds the table entries Mappings looks at: tables that point at
// each other can make the tree as large as the address space.
const maxVisits = 1 << 20

// Mappings calls f for each run mapped between lo and hi (both included),
// ascending, until f returns false. A table that cannot be read ends it with an error.
func (sp *Space) Mappings(lo, hi mem.Virt, f func(Mapping) bool) error {
	m := mapper{sp: sp, lo: lo, hi: hi, f: f}
	defer func() { sp.visits += m.visits }()
	if err := m.table(sp.root, sp.levels, 0, true); err != nil {
		return err
	}
	if m.run.Size > 0 && !m.done {
		f(m.run)
	}
	return nil
}

// Visits returns how many table entries Mappings looked at: what it cost.
func (sp *Space) Visits() int { return sp.visits }

type mapper struct {
	sp     *Space
	lo, hi mem.Virt
	f      func(Mapping) bool
	run    Mapping
	visits int
	done   bool
}

func (m *mapper) table(table mem.Phys, level int, base mem.Virt, user bool) error {
	shift := uint(12 + 9*(level-1))
	size := uint64(1) << shift
	for i := range uint64(entries) {
		if m.done {
			return nil
		}
		a := base + mem.Virt(i<<shift)
		if level == m.sp.levels && i >= entries/2 { // sign extension
			a |= ^mem.Virt(0) << (shift + 9)
		}
		if a+mem.Virt(size-1) < m.lo || a > m.hi {
			continue
		}
		if m.visits++; m.visits > maxVisits {
			return &mem.Fault{Layer: mem.LayerTable, Addr: uint64(table), Err: mem.ErrBadTable}
		}
		slot := table + mem.Phys(i*8)
		e, err := m.sp.snap.Uint64(slot)
		if err != nil {
			return tableFault(a, err)
		}
		user := user && e&entryUser != 0
		switch {
		case e&entryPresent == 0:
		case level == 1 || e&entryLarge != 0 && level <= 3:
			m.leaf(Mapping{a, mem.Phys(e & entryAddr &^ (size - 1)), size, user})
		case e&entryLarge != 0:
			return &mem.Fault{Layer: mem.LayerTable, Addr: uint64(slot), Err: mem.ErrBadTable}
		default:
			if err := m.table(mem.Phys(e&entryAddr), level-1, a, user); err != nil {
				return err
			}
		}
	}
	return nil
}

// leaf joins a page to the current run or reports that and begins another.
func (m *mapper) leaf(l Mapping) {
	r := &m.run
	if r.Size > 0 && r.Virt+mem.Virt(r.Size) == l.Virt && r.Phys+mem.Phys(r.Size) == l.Phys && r.User == l.User {
		r.Size += l.Size
		return
	}
	if r.Size > 0 && !m.f(*r) {
		m.done = true
		return
	}
	*r = l
}
