package lab

import (
	"context"
	"os"
)

// chooseAccel returns the accelerator to use.
func chooseAccel(ctx context.Context) (string, error) {
	if a := os.Getenv("UMBRA_LAB_ACCEL"); a != "" {
		return a, nil
	}
	return "tcg", nil
}
