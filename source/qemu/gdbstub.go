package qemu

import (
	"context"
	"fmt"
)

func (s *Source) stubRegisters(context.Context) (string, error) {
	return "", fmt.Errorf("%w: the GDB stub is not used yet", ErrNoRegisters)
}
