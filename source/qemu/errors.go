package qemu

import "errors"

// Why a machine cannot be opened. A TargetError wraps one of them and may add a
// hint.
var (
	ErrNoMachine  = errors.New("no such machine")
	ErrAmbiguous  = errors.New("more than one machine matches")
	ErrNotQEMU    = errors.New("not a QEMU process")
	ErrPermission = errors.New("no permission")

	// ErrLayout: where the machine has RAM can be neither asked nor proved.
	ErrLayout = errors.New("the machine's memory layout is unknown")

	// ErrNoRegisters: neither QMP nor a GDB stub gives the registers.
	ErrNoRegisters = errors.New("the machine's registers cannot be read")
)

// TargetError is an error with advice for the person who named the target.
type TargetError struct {
	Err  error
	Hint string // a sentence without a full stop; empty when there is none
}

func (e *TargetError) Error() string { return e.Err.Error() }
func (e *TargetError) Unwrap() error { return e.Err }

// HintLine is what to try next.
func (e *TargetError) HintLine() string { return e.Hint }
