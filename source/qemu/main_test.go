package qemu

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	RunWatchdogIfAsked()
	os.Exit(m.Run())
}
