package kernel

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/mem"
)

// lazyTypes is a kernel's BTF, parsed when the cache cannot answer.
type lazyTypes struct {
	mu     sync.Mutex
	load   func() ([]byte, error) // nil once parsed
	types  *btf.Types
	err    error
	start  mem.Virt          // where it lies in the image, 0 when it was supplied
	size   uint64            // bytes
	digest [sha256.Size]byte // of those bytes
	memo   *memo             // nil keeps nothing
}

func (l *lazyTypes) get() (*btf.Types, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parse()
}

func (l *lazyTypes) parse() (*btf.Types, error) {
	if l.load != nil {
		blob, err := l.load()
		if err == nil && sha256.Sum256(blob) != l.digest {
			// What is learned is kept under the digest. A guest that shows one table
			// to be hashed and another to be parsed must not fill the other's entry.
			err = fmt.Errorf("BTF at %v: %w", l.start, errTypesChanged)
		}
		if err == nil {
			if l.types, err = btf.Parse(blob); err != nil {
				err = missingTypes(err)
			}
		}
		l.err, l.load = err, nil
	}
	return l.types, l.err
}

// errTypesChanged is BTF that is not what it was when it was hashed.
var errTypesChanged = errors.New("the types in the kernel's memory changed since attach")

// Field answers from the memo, or from the types and remembers.
func (l *lazyTypes) Field(path string) (btf.Field, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.memo.field(path); ok {
		if !f.Known {
			return f, fmt.Errorf("field %q: %w", path, btf.ErrNoField)
		}
		return f, nil
	}
	types, err := l.parse()
	if err != nil {
		return btf.Field{}, err
	}
	f, err := types.Field(path)
	// That types are malformed is not that they lack a field.
	if err == nil || errors.Is(err, btf.ErrNoField) || errors.Is(err, btf.ErrNoType) {
		l.memo.add(path, f)
	}
	return f, err
}

func missingTypes(err error) error {
	return &MissingError{What: "BTF", Flag: "--btf FILE or --vmlinux FILE", Err: err}
}

// loadTypes finds the running kernel's BTF by its own symbols (the section is laid
// between them by include/asm-generic/vmlinux.lds.h).
func (k *Kernel) loadTypes(opts Options) (*lazyTypes, error) {
	if opts.Types != nil {
		return &lazyTypes{types: opts.Types}, nil
	}
	start, err := k.Symbol("__start_BTF")
	if err != nil {
		return nil, missingTypes(err)
	}
	stop, err := k.Symbol("__stop_BTF")
	if err != nil {
		return nil, missingTypes(err)
	}
	if stop < start || stop-start > btf.MaxSize {
		return nil, missingTypes(fmt.Errorf("__start_BTF %v, __stop_BTF %v: %w", start, stop, btf.ErrFormat))
	}
	read := func() ([]byte, error) {
		blob := make([]byte, stop-start)
		if err := k.image.Read(start, blob); err != nil {
			return nil, missingTypes(err)
		}
		return blob, nil
	}
	digest, err := k.digest(start, uint64(stop-start))
	if err != nil {
		return nil, missingTypes(err)
	}
	m := opts.Cache.open(digest)
	k.attach.Cached = m != nil && m.hit
	return &lazyTypes{load: read, start: start, size: uint64(stop - start), digest: digest, memo: m}, nil
}

// digest hashes a part of the image without holding it.
func (k *Kernel) digest(a mem.Virt, size uint64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	buf := make([]byte, min(size, 1<<18))
	for done := uint64(0); done < size; {
		chunk := buf[:min(uint64(len(buf)), size-done)]
		if err := k.image.Read(a+mem.Virt(done), chunk); err != nil {
			return sum, err
		}
		h.Write(chunk)
		done += uint64(len(chunk))
	}
	h.Sum(sum[:0])
	return sum, nil
}
