package linux

import "testing"

// TestStateLetter holds task states against what include/linux/sched.h makes of them.
func TestStateLetter(t *testing.T) {
	for _, c := range []struct {
		what        string
		state, exit uint64
		want        string
	}{
		{"running", 0, 0, "R"},
		{"interruptible", 0x1, 0, "S"},
		{"interruptible and freezable", 0x2001, 0, "S"},
		{"uninterruptible", 0x2, 0, "D"},
		{"killable", 0x102, 0, "D"},
		{"idle", 0x402, 0, "I"},
		{"idle and freezable", 0x2402, 0, "I"},
		{"stopped", 0x104, 0, "T"},
		{"traced", 0x108, 0, "t"},
		{"dead", 0x80, 0x10, "X"},
		{"zombie", 0x80, 0x20, "Z"},
		{"parked", 0x40, 0, "P"},
		{"waiting for a lock of an RT kernel", 0x1000, 0, "D"},
		{"the same, freezable", 0x3000, 0, "D"},
		{"frozen", 0x8000, 0, "D"},
		{"frozen while stopped", 0x8004, 0, "D"},
		{"every bit", ^uint64(0), ^uint64(0), "D"},
	} {
		if got := stateLetter(c.state, c.exit); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}
