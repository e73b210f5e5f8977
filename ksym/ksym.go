// Package ksym decodes the symbol table a Linux kernel carries about itself
// (kallsyms) out of a running kernel's memory, in every layout x86-64 kernels
// from 5.10 to 7.2 use, and finds it there without being told where it is.
//
// The format mirrors scripts/kallsyms.c, which writes the tables at build time,
// and kernel/kallsyms.c, which reads them. Everything read is the guest's word:
// counts and lengths are bounded, and a table is accepted only when all of its
// parts agree with each other.
package ksym

import (
	"errors"
	"fmt"

	"github.com/umbravm/umbra/mem"
)

// Image is a kernel's image as it lies in memory, from its first byte (_text)
// on: code, read-only data, data. Parts may be unreadable, as freed init
// sections are.
type Image interface {
	// Base is the address the image runs at, slid by KASLR.
	Base() mem.Virt
	// Size is the image's length in bytes.
	Size() uint64
	// ReadAt reads len(p) bytes from offset off of the image. It returns how many
	// leading bytes of p are valid and, when that is not all, why.
	ReadAt(p []byte, off int64) (int, error)
}

// Symbol is one entry of the table, as a line of /proc/kallsyms shows it.
type Symbol struct {
	Name string
	// Type is nm's letter: T text, D data, R read-only data, B bss, A absolute, …;
	// lower case for a local symbol.
	Type byte
	// Addr is the symbol's address at run time. Up to 6.14 a per-CPU symbol's is
	// its small offset into the per-CPU area; from 6.15 on it is an address like
	// any other.
	Addr mem.Virt
}

// Limits on what a guest can make the decoder do. Real x86-64 kernels have 75
// to 300 thousand symbols and 1 to 5 MB of compressed names.
const (
	minSymbols    = 1 << 11
	maxSymbols    = 1 << 21
	maxNamesBytes = 24 << 20
	maxImageBytes = 1 << 30 // the kernel's half of the top 2 GiB (KERNEL_IMAGE_SIZE)

	// maxName is the longest name with its type letter (KSYM_NAME_LEN is 512 with
	// the terminator since 6.1, 128 before).
	maxName = 512
	// maxEntry is the most bytes one name takes up compressed: every token stands
	// for at least one character, and the length is one or two bytes.
	maxEntry = maxName + 2
)

var (
	// ErrNotFound says that no symbol table was found in an image.
	ErrNotFound = errors.New("no kallsyms table")
	// ErrMalformed says that what lies at a table's place is not one.
	ErrMalformed = errors.New("malformed kallsyms table")
)

// malformed is an ErrMalformed with the part that is wrong and why.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// view reads an image by address.
type view struct {
	img  Image
	base mem.Virt
	size uint64
}

func newView(img Image) (view, error) {
	v := view{img: img, base: img.Base(), size: img.Size()}
	if v.size == 0 || v.size > maxImageBytes {
		return view{}, fmt.Errorf("kernel image at %v: unlikely size of %#x bytes", v.base, v.size)
	}
	if v.base != v.base.Page() {
		return view{}, fmt.Errorf("kernel image at %v: not at a page's start", v.base)
	}
	if _, ok := v.base.Add(v.size - 1); !ok {
		return view{}, fmt.Errorf("kernel image at %v, %#x bytes, runs past the address space", v.base, v.size)
	}
	return v, nil
}

// contains tells whether n bytes at a lie in the image.
func (v view) contains(a mem.Virt, n uint64) bool {
	off := uint64(a - v.base)
	return a >= v.base && off <= v.size && n <= v.size-off
}

// read fills p from address a. It is all or an error.
func (v view) read(p []byte, a mem.Virt) error {
	if !v.contains(a, uint64(len(p))) {
		return fmt.Errorf("%#x bytes at %v: outside the kernel image at %v, %#x bytes", len(p), a, v.base, v.size)
	}
	n, err := v.img.ReadAt(p, int64(a-v.base))
	if n >= len(p) {
		return nil
	}
	if err == nil {
		err = errors.New("short read")
	}
	return fmt.Errorf("%#x bytes at %v: %w", len(p), a, err)
}

// readUpTo reads what it can of p and returns the readable head.
func (v view) readUpTo(p []byte, a mem.Virt) []byte {
	if !v.contains(a, 0) {
		return nil
	}
	p = p[:min(uint64(len(p)), v.size-uint64(a-v.base))]
	n, _ := v.img.ReadAt(p, int64(a-v.base))
	return p[:max(0, min(n, len(p)))]
}

// readLoose fills p from a; pages that cannot be read come as zeros. It is for
// searching only: what is found this way is read again.
func (v view) readLoose(p []byte, a mem.Virt) {
	for len(p) > 0 {
		n := len(v.readUpTo(p, a))
		skip := min(len(p), n+int(mem.PageSize-(a+mem.Virt(n))%mem.PageSize))
		if n == len(p) {
			return
		}
		clear(p[n:skip])
		p, a = p[skip:], a+mem.Virt(skip)
	}
}

// alignUp rounds a up to a multiple of n, a power of two.
func alignUp(a mem.Virt, n uint64) mem.Virt {
	return (a + mem.Virt(n-1)) &^ mem.Virt(n-1)
}
