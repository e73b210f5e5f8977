package dump

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// WriteOptions say what goes into a dump besides memory.
type WriteOptions struct {
	// Progress is told now and then, and at the end, how many of the machine's
	// bytes are done. It is called by the goroutine that called Write.
	Progress func(done, total uint64)

	// VMCoreInfo is the kernel's VMCOREINFO text, for ELF. Other tools find the
	// kernel by it.
	VMCoreInfo []byte

	// KernelMap is where the kernel maps memory, for ELF: each becomes segments
	// with these virtual addresses, which share their bytes with the physical ones.
	KernelMap []Mapping

	// Replace lets Write take the place of a file that exists.
	Replace bool
}

// Mapping is a run of virtual addresses and the memory behind it.
type Mapping struct {
	Virt mem.Virt
	Phys mem.Phys
	Size uint64 // bytes
}

// Report is what Write did.
type Report struct {
	// Layout is the memory in the file, in the file's order. A Raw file does not
	// hold it: unless it is one run from address 0, it must be kept elsewhere and
	// given to Open.
	Layout []mem.Extent

	// Unreadable is how many bytes of the machine's RAM are not in the file because
	// they could not be read, and Fault why the first of them could not.
	Unreadable uint64
	Fault      error

	// NoRegisters is why an ELF file has no notes of CPUs, nil when it has them or
	// src is of a kind that never knows registers.
	NoRegisters error

	// Stored is how many bytes were written; zeros are left as holes.
	Stored uint64
}

// Write writes src's memory to a file at path, in format ELF, LiME or Raw. The
// file appears under its name when it is complete and on the disk; before, it
// has a temporary name beside it and no valid header. An error leaves nothing
// behind.
//
// Memory that cannot be read is left out of the file, never written as zeros. An
// ELF core gets a note per CPU when src knows registers: one of QEMU's kind, in
// which registers src does not know (the general ones) are 0, and one that holds
// exactly what is known.
func Write(ctx context.Context, path string, src source.Source, format Format, opts WriteOptions) (Report, error) {
	return write(ctx, diskFiles{}, path, src, format, opts)
}

// target is the file that is written.
type target interface {
	WriteAt(b []byte, off int64) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
	Name() string
}

// files is the disk, which tests break.
type files interface {
	create(dir, pattern string) (target, error)
	remove(name string) error
	// publish gives a complete file its name.
	publish(from, to string, replace bool) error
}

// encoder is what a format adds to memory.
type encoder interface {
	// begin is called before the run at start is written; pos is the end of the
	// file so far. It returns where the run's bytes begin.
	begin(start mem.Phys, pos uint64) (uint64, error)
	// end is called when the run g is written.
	end(w target, g segment) error
	// finish makes the file valid; pos is its end, which may move.
	finish(w target, runs []segment, pos uint64) error
}

func newEncoder(ctx context.Context, src source.Source, format Format, opts WriteOptions, report *Report) (encoder, error) {
	switch format {
	case ELF:
		return newELFEncoder(ctx, src, opts, report)
	case LiME:
		return &limeEncoder{}, nil
	case Raw:
		return rawEncoder{}, nil
	}
	return nil, fmt.Errorf("dumps are written as %s, %s or %s, not %q", ELF, LiME, Raw, string(format))
}

func write(ctx context.Context, disk files, path string, src source.Source, format Format, opts WriteOptions) (_ Report, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write dump %s: %w", path, err)
		}
	}()
	if _, err := os.Lstat(path); err == nil && !opts.Replace {
		return Report{}, fs.ErrExist
	}
	c := &copier{src: src, progress: opts.Progress}
	c.enc, err = newEncoder(ctx, src, format, opts, &c.report)
	if err != nil {
		return Report{}, err
	}
	c.w, err = disk.create(filepath.Dir(path), "."+filepath.Base(path)+".*.partial")
	if err != nil {
		return Report{}, err
	}
	err = c.fill(ctx)
	err = errors.Join(err, c.w.Close())
	if err == nil {
		err = disk.publish(c.w.Name(), path, opts.Replace)
	}
	if err != nil {
		if rm := disk.remove(c.w.Name()); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("the unfinished file stays: %w", rm))
		}
		return Report{}, err
	}
	return c.report, nil
}

// diskFiles is the real disk.
type diskFiles struct{}

func (diskFiles) create(dir, pattern string) (target, error) { return os.CreateTemp(dir, pattern) }
func (diskFiles) remove(name string) error                   { return os.Remove(name) }

func (diskFiles) publish(from, to string, replace bool) error {
	if err := rename(from, to, replace); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer dir.Close()
	// Some file systems cannot sync a directory; the file itself is on the disk.
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

func rename(from, to string, replace bool) error {
	if replace {
		return os.Rename(from, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// A file system without it: the check and the renaming are two steps.
		if _, err := os.Lstat(to); err == nil {
			return fs.ErrExist
		}
		return os.Rename(from, to)
	}
	if err != nil {
		return fmt.Errorf("rename to %s: %w", to, err)
	}
	return nil
}
