package linux

import (
	"github.com/umbravm/umbra/kernel"
)

// budget bounds what all objects of one answer hold together: a hostile machine
// can let any number of them lead to the same memory.
type budget struct{ left uint64 }

// maxAllText bounds the paths and arguments of all rows of an answer, in bytes.
const maxAllText = 64 << 20

// stringSize is what a string takes besides its bytes.
const stringSize = 16

func textSize(s *string) uint64 {
	if s == nil {
		return 0
	}
	return uint64(len(*s)) + stringSize
}

// take notes that a walk's object holds n more; held is the object's own count. The
// walk fails when the budget is used up.
func (b *budget) take(w *kernel.Walk, held *uint64, n uint64) bool {
	if n > b.left {
		w.Failf("with all others of its kind: %w", kernel.ErrTooLong)
		return false
	}
	b.left -= n
	*held += n
	return true
}

// back returns what an object held, since its walk begins anew.
func (b *budget) back(held *uint64) {
	b.left += *held
	*held = 0
}
