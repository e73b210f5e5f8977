package btf

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/umbravm/umbra/internal/vmlinux"
)

// ErrNoTypes is a kernel's file that says nothing of its types.
var ErrNoTypes = errors.New("neither BTF nor DWARF in the file")

// FromFile reads a kernel's BTF from a file of its own, such as
// /sys/kernel/btf/vmlinux or what bpftool and pahole write.
func FromFile(path string) (*Types, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Files in /sys do not tell their size.
	blob, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w", path, err)
	}
	if len(blob) > MaxSize {
		return nil, fmt.Errorf("types of %s: %w: more than %d bytes", path, ErrFormat, MaxSize)
	}
	t, err := Parse(blob)
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w", path, err)
	}
	return t, nil
}

// FromVmlinux reads the types of a kernel from its ELF file: its BTF where it has
// any, else its DWARF, of which a type is read when it is asked for. The error
// wraps ErrNoTypes when it has neither.
func FromVmlinux(path string) (*Types, error) {
	f, err := vmlinux.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := fromELF(f)
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w", path, err)
	}
	return t, nil
}

func fromELF(f *vmlinux.File) (*Types, error) {
	s := f.Section(".BTF")
	if s == nil {
		return fromDWARF(f)
	}
	blob, err := f.Data(s, MaxSize)
	if err != nil {
		return nil, err
	}
	return Parse(blob)
}
