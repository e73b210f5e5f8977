package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// overwriteArgs writes text over argv, and over the environment behind it where
// text is longer, as setproctitle(3) does; the rest of argv becomes zero.
// The environment's copies that Go took at the start are not affected.
func overwriteArgs(text string) {
	total := 0
	for _, a := range os.Args {
		total += len(a) + 1
	}
	area := unsafe.Slice(unsafe.StringData(os.Args[0]), max(total, len(text)+1))
	clear(area)
	copy(area, text)
}

// nameMapping names an anonymous mapping for /proc/PID/maps (since 5.17).
func nameMapping(b []byte, name string) error {
	n, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_VMA, unix.PR_SET_VMA_ANON_NAME,
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(n)))
}

// addressOf returns where b lies.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }
