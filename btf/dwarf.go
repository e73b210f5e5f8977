package btf

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"

	cbtf "github.com/cilium/ebpf/btf"

	"github.com/umbravm/umbra/internal/vmlinux"
)

// debugInfo is the types of a file's DWARF. Its sections stay mapped: of half a
// gigabyte, memory holds the offsets of names and what was asked for.
type debugInfo struct {
	names map[dwarfName]uint64
	units []unit

	mu       sync.Mutex
	sections dwarfSections
	tables   map[uint64]*abbrevs // the last ones used, by offset
	decoder
}

// maxTables bounds the tables of entry kinds kept, of up to 36 KB each in Debian's 6.1.
const maxTables = 64

// fromDWARF indexes a kernel's debugging information.
func fromDWARF(f *vmlinux.File) (t *Types, err error) {
	var s scan
	var unmap []func()
	defer func() {
		if err != nil {
			for _, u := range unmap {
				u()
			}
		}
	}()
	for _, part := range []struct {
		name     string
		into     *[]byte
		required bool
	}{
		{".debug_info", &s.info, true}, {".debug_abbrev", &s.abbrev, true}, {".debug_str", &s.str, false},
		{".debug_line_str", &s.lineStr, false}, {".debug_str_offsets", &s.strOffsets, false},
	} {
		section := f.Section(part.name)
		if section == nil {
			if part.required {
				return nil, ErrNoTypes
			}
			continue
		}
		data, u, err := f.Map(section)
		if err != nil {
			return nil, err
		}
		if u != nil {
			unmap = append(unmap, u)
		}
		*part.into = data
	}
	d := &debugInfo{}
	if err := d.load(&s); err != nil {
		return nil, err
	}
	for _, u := range unmap {
		runtime.AddCleanup(d, func(u func()) { u() }, u)
	}
	return &Types{d}, nil
}

// load indexes the sections.
func (d *debugInfo) load(s *scan) (err error) {
	defer guard(&err)()
	if err := s.run(); err != nil {
		return err
	}
	if len(s.found) == 0 {
		return ErrNoTypes
	}
	d.names, d.units, d.sections = s.found, s.units, s.dwarfSections
	d.tables = make(map[uint64]*abbrevs)
	return nil
}

// guard turns the panic that reading a mapped file ends in when the file was cut
// into an error.
func guard(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("read debugging information: %v", p)
		}
	}
}

// find implements typeSource.
func (d *debugInfo) find(name string, yield func(handle uint64, kind uint8) bool) error {
	for _, kind := range []uint8{kindStruct, kindUnion, kindTypedef, kindEnum, kindInt, kindVar} {
		if at, ok := d.names[dwarfName{kind, name}]; ok && !yield(at, kind) {
			return nil
		}
	}
	return nil
}

func (d *debugInfo) get(handle uint64) (t cbtf.Type, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer guard(&err)()
	t, err = d.decode(d, handle)
	runtime.KeepAlive(d)
	return t, err
}

func (d *debugInfo) complete(f *cbtf.Fwd) (cbtf.Type, bool, error) {
	d.mu.Lock()
	handle, ok := d.behind[f]
	d.mu.Unlock()
	if !ok {
		return nil, false, nil
	}
	t, err := d.get(handle)
	return t, err == nil, err
}
