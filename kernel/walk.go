package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/paging"
)

// MaxRead bounds one read whose length the guest chose, in bytes.
const MaxRead = 4 << 20

// ErrTooLong is a length, count or depth beyond what a kernel can have.
var ErrTooLong = errors.New("longer than any kernel makes it")

// ErrLoop is a list or tree that leads back into itself.
var ErrLoop = errors.New("leads back into itself")

// Walk reads the objects of one walk. Its first error sticks: every later read
// returns zero without touching memory, so code reads a whole object and checks
// Err once before it uses any of it.
type Walk struct {
	v     *View
	space *paging.Space
	err   error
	probe bool // errors are expected
}

// View returns what the walk reads.
func (w *Walk) View() *View { return w.v }

// Err returns the first error of the walk.
func (w *Walk) Err() error { return w.err }

// OK tells whether the walk has met no error yet.
func (w *Walk) OK() bool { return w.err == nil }

// Fail ends the walk with an error, unless it has one. On a machine that runs, the
// walk is done again from memory read anew before the error is believed.
func (w *Walk) Fail(err error) {
	if w.err == nil && err != nil {
		w.err = err
		if !w.probe {
			w.v.snap.Doubt()
		}
	}
}

// Failf is Fail with a format.
func (w *Walk) Failf(format string, args ...any) { w.Fail(fmt.Errorf(format, args...)) }

// Try runs a part of the walk that may fail without failing the rest, and returns
// its error. Parts that do not depend on each other should all be tried before
// their errors are looked at: then their pages come in the same rounds.
func (w *Walk) Try(part func()) error {
	if w.err != nil {
		return w.err
	}
	part()
	err := w.err
	w.err = nil
	return err
}

// Probe is Try for a part that may well fail: reading ahead of need, or finding out
// what something is. Its failure puts nothing in doubt.
func (w *Walk) Probe(part func()) error {
	was := w.probe
	w.probe = true
	err := w.Try(part)
	w.probe = was
	return err
}

// In runs part with reads going through another address space.
func (w *Walk) In(space *paging.Space, part func()) {
	saved := w.space
	w.space = space
	part()
	w.space = saved
}

// Read fills buf from a on.
func (w *Walk) Read(a mem.Virt, buf []byte) bool {
	if w.err != nil {
		return false
	}
	if _, err := w.space.Read(a, buf); err != nil {
		w.Fail(err)
		return false
	}
	return true
}

// Bytes returns the n bytes at a. n is the guest's word and bounded by MaxRead.
func (w *Walk) Bytes(a mem.Virt, n uint64) []byte {
	if w.err != nil {
		return nil
	}
	if n > MaxRead {
		w.Failf("read %d bytes at %v: %w", n, a, ErrTooLong)
		return nil
	}
	buf := make([]byte, n)
	if !w.Read(a, buf) {
		return nil
	}
	return buf
}

// Word returns the 8-byte word at a.
func (w *Walk) Word(a mem.Virt) uint64 {
	if w.err != nil {
		return 0
	}
	x, err := w.space.Uint64(a)
	if err != nil {
		w.Fail(err)
		return 0
	}
	return x
}

// Pointer returns the pointer at a.
func (w *Walk) Pointer(a mem.Virt) mem.Virt { return mem.Virt(w.Word(a)) }

// U32 returns the 4-byte word at a.
func (w *Walk) U32(a mem.Virt) uint32 {
	var b [4]byte
	w.Read(a, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

// At returns the address of a field of obj.
func (w *Walk) At(obj mem.Virt, f btf.Field) mem.Virt {
	if w.err == nil && !f.Known {
		w.Failf("field %q: %w", f.Name, btf.ErrNoField)
	}
	return obj + mem.Virt(f.Offset)
}

// Uint returns an integer, pointer or bit field of obj, zero-extended.
func (w *Walk) Uint(obj mem.Virt, f btf.Field) uint64 {
	a := w.At(obj, f)
	if w.err != nil {
		return 0
	}
	n := f.Size
	if f.Bits > 0 {
		n = uint32(f.BitOff+f.Bits+7) / 8
	}
	if n == 8 {
		return w.Word(a)
	}
	if n == 0 || n > 8 {
		w.Failf("field %q: %d bytes are no integer", f.Name, n)
		return 0
	}
	var b [8]byte
	w.Read(a, b[:n])
	x := binary.LittleEndian.Uint64(b[:])
	if f.Bits > 0 {
		x = x >> f.BitOff & (1<<f.Bits - 1)
	}
	return x
}

// Int returns an integer field of obj, sign-extended when its type is signed.
func (w *Walk) Int(obj mem.Virt, f btf.Field) int64 {
	x := w.Uint(obj, f)
	width := f.Size * 8
	if f.Bits > 0 {
		width = uint32(f.Bits)
	}
	if !f.Signed || width == 0 || width >= 64 {
		return int64(x)
	}
	shift := 64 - width
	return int64(x<<shift) >> shift
}

// Ptr returns a pointer field of obj.
func (w *Walk) Ptr(obj mem.Virt, f btf.Field) mem.Virt { return mem.Virt(w.Uint(obj, f)) }

// Text returns a character array inside obj, up to its first NUL.
func (w *Walk) Text(obj mem.Virt, f btf.Field) string {
	b := w.Bytes(w.At(obj, f), uint64(f.Size))
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// String returns the NUL-terminated string at a, of at most limit bytes.
func (w *Walk) String(a mem.Virt, limit int) string {
	var out []byte
	for w.err == nil {
		chunk := int(mem.PageSize - a&(mem.PageSize-1))
		chunk = min(chunk, limit+1-len(out))
		if chunk <= 0 {
			w.Failf("string of more than %d bytes: %w", limit, ErrTooLong)
			break
		}
		b := w.Bytes(a, uint64(min(chunk, 64)))
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(append(out, b[:i]...))
		}
		out = append(out, b...)
		a += mem.Virt(len(b))
	}
	return ""
}

// Guard marks a field the walk's answer stands on: a followed link, an identity.
// Should it differ when the walks are done, this walk is done again.
func (w *Walk) Guard(obj mem.Virt, f btf.Field) {
	if w.err != nil || !f.Known {
		return
	}
	a := obj + mem.Virt(f.Offset)
	n := min(int(f.Size), 8)
	if p, err := w.space.Translate(a); err == nil && p&(mem.PageSize-1)+mem.Phys(n) <= mem.PageSize {
		w.v.snap.Guard(p, n)
	}
}

// Want asks for the pages of fields of obj that will be read next, so that an
// object that spans several pages takes one round and not one for each.
func (w *Walk) Want(obj mem.Virt, fields ...btf.Field) {
	if w.err != nil {
		return
	}
	var frames [maxWanted]mem.Phys
	n := 0
	add := func(a mem.Virt) {
		// An address that cannot be translated is told when it is read.
		if p, err := w.space.Translate(a); err == nil && n < maxWanted && !slices.Contains(frames[:n], p.Page()) {
			frames[n] = p.Page()
			n++
		}
	}
	var last mem.Virt
	for _, f := range fields {
		if !f.Known {
			continue
		}
		first := obj + mem.Virt(f.Offset)
		end := first + mem.Virt(max(f.Size, 1)-1)
		if first.Page() != last {
			add(first)
		}
		if last = end.Page(); last != first.Page() {
			add(end)
		}
	}
	w.v.snap.Want(frames[:n])
}

// maxWanted is the most pages of one object wanted at once.
const maxWanted = 8

// Follow is Ptr of a link that Guard watches.
func (w *Walk) Follow(obj mem.Virt, f btf.Field) mem.Virt {
	w.Guard(obj, f)
	return w.Ptr(obj, f)
}
