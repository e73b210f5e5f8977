package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// probeTimeout bounds the boot that shows whether KVM works.
const probeTimeout = 30 * time.Second

// chooseAccel returns the accelerator to use: UMBRA_LAB_ACCEL, KVM where a stock
// kernel really boots under it, TCG otherwise. That /dev/kvm can be opened says
// little: nested or emulated ones exist that cannot run a kernel. What a probe
// found holds until the host is booted again.
func chooseAccel(ctx context.Context) (string, error) {
	switch a := os.Getenv("UMBRA_LAB_ACCEL"); a {
	case "":
	case "kvm", "tcg":
		return a, nil
	default:
		return "", fmt.Errorf("UMBRA_LAB_ACCEL is %q: kvm or tcg", a)
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", nil
	}
	f.Close()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	dir, err := cached(ctx, "accel-"+strings.TrimSpace(string(boot)), func(dir string) error {
		accel, err := probeKVM(ctx)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "accel"), []byte(accel), 0o644)
	})
	if err != nil {
		return "", fmt.Errorf("choose an accelerator: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "accel"))
	return string(b), err
}

// probeKVM boots a kernel under KVM as far as the marker. Its error is for what
// says nothing about KVM, such as a kernel that cannot be fetched.
func probeKVM(ctx context.Context) (string, error) {
	c := Config{MemMB: 256, RAM: RAMStock, NoOracle: true, Append: []string{"umbra.state=0"}}.withDefaults()
	kernel, err := FetchKernel(ctx, c.Kernel, c.Flavour)
	if err != nil {
		return "", err
	}
	if _, err := guestProgram(ctx); err != nil {
		return "", err
	}
	probe, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	g, err := bootWith(probe, c, kernel, "kvm")
	if ctx.Err() != nil {
		return "", errors.Join(ctx.Err(), err)
	}
	if err != nil {
		return "tcg", nil
	}
	return "kvm", g.Close()
}
