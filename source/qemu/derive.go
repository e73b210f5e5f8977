package qemu

import "fmt"

// deriveLayout works out the layout without QMP.
func (s *Source) deriveLayout(*opener) ([]block, error) {
	return nil, fmt.Errorf("%w: it can be asked through QMP only (%w)", ErrLayout, s.qmpErr)
}
