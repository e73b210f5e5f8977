// Package source names what a way to reach a machine's memory must do, and what
// it may do besides. Each way is a package below this one; source/all lists them.
package source

import (
	"context"
	"time"

	"github.com/umbravm/umbra/mem"
)

// Source is a machine's memory. Implementations are safe for use by one
// goroutine at a time, copy what they read, and never write to the machine.
type Source interface {
	mem.Reader

	// Info describes the source. It does not change until Close, but for the
	// layout when memory is hot-plugged (see Refresher).
	Info() Info

	// Close lets go of the machine. A machine this source paused runs again.
	Close() error
}

// Info is what is known of a machine without reading its memory.
type Info struct {
	Kind   string     // "qemu", "dump", "replay": what a target's prefix says
	Name   string     // the machine's name, or the file's
	Detail string     // how memory is reached, for people: "shared memory-backend-file, QMP"
	Layout mem.Layout // where the machine has RAM
	Live   bool       // memory may change while it is read
	Local  bool       // a round trip costs no more than a system call
	CPUs   int        // virtual CPUs, 0 when unknown
}

// RegisterReader is a source that knows the registers of the machine's CPUs.
type RegisterReader interface {
	// Registers returns one entry per virtual CPU, in the order of their numbers.
	// They belong to slightly different moments while the machine runs.
	Registers(ctx context.Context) ([]Registers, error)
}

// Registers are the registers of an x86-64 CPU that lead to its kernel. LSTAR is
// missing: neither QEMU's monitor nor its GDB stub shows it.
type Registers struct {
	CPU          int    `json:"cpu"`
	RIP          uint64 `json:"rip"`
	RSP          uint64 `json:"rsp"`
	CR0          uint64 `json:"cr0"`
	CR3          uint64 `json:"cr3"`
	CR4          uint64 `json:"cr4"`
	EFER         uint64 `json:"efer"`
	IDTBase      uint64 `json:"idt_base"`
	GSBase       uint64 `json:"gs_base"`
	KernelGSBase uint64 `json:"kernel_gs_base"` // 0 when unknown
	CPL          int    `json:"cpl"`
}

// Pauser is a source that can stop the machine.
type Pauser interface {
	// Pause stops the machine and returns the function that lets it run again and
	// reports how long it stood still. When the machine was stopped already,
	// resume leaves it so and reports 0. If this process dies in between, the
	// machine resumes by itself.
	Pause(ctx context.Context) (resume func() (time.Duration, error), err error)

	// Paused tells whether the machine stands still now.
	Paused(ctx context.Context) (bool, error)
}

// Refresher is a source whose machine can restart or gain memory while attached.
type Refresher interface {
	// Refresh looks at the machine again and updates Info. It returns mem.ErrGone
	// when the machine has ended.
	Refresh(ctx context.Context) error
}

// HoleFinder is a source that can tell which RAM was never written, so that a
// scan can leave it out.
type HoleFinder interface {
	// Data returns the first run of written RAM at or after from, and false when
	// there is none. What it leaves out reads as zeros.
	Data(from mem.Phys) (mem.Extent, bool)
}

// Peeker is a source that keeps what is read through it, but for what is only
// looked through.
type Peeker interface {
	// Peek is ReadPhys of what is not kept. What is found so must be read again.
	Peek(ctx context.Context, reads []mem.Read) error
}
