package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
)

// Machine code for x86-64 of programs that need no memory besides their stack.
var (
	// L: mov eax, 34 (pause); syscall; jmp L
	pauseCode = []byte{0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7}
	// mov eax, 58 (vfork); syscall; then as above. The child pauses, so the parent
	// stays in uninterruptible sleep.
	vforkCode = append([]byte{0xb8, 58, 0, 0, 0, 0x0f, 0x05}, pauseCode...)
	// mov eax, 60 (exit); mov edi, 7; syscall
	exitCode = []byte{0xb8, 60, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05}
)

// tinyELF returns an executable of one page that holds nothing but code: a guest
// can have ten thousand of them, which a Go program's runtime would not allow.
func tinyELF(code []byte) []byte {
	const base, headers = 0x400000, 64 + 56
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			binary.Write(&b, binary.LittleEndian, v) // a bytes.Buffer does not fail
		}
	}
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	// ELF header: executable, x86-64, version, entry, program headers at 64.
	put(uint16(2), uint16(62), uint32(1), uint64(base+headers), uint64(64), uint64(0),
		uint32(0), uint16(64), uint16(56), uint16(1), uint16(64), uint16(0), uint16(0))
	// One segment to load, read and execute, the whole file.
	size := uint64(headers + len(code))
	put(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000))
	b.Write(code)
	return b.Bytes()
}

const tinyDir = "/run/umbra"

// writeTiny leaves the tiny programs in tinyDir.
func writeTiny() error {
	if err := os.MkdirAll(tinyDir, 0o755); err != nil {
		return err
	}
	for name, code := range map[string][]byte{"idle": pauseCode, "vfork": vforkCode, "exit": exitCode} {
		if err := os.WriteFile(tinyDir+"/"+name, tinyELF(code), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// startTiny starts a tiny program. Its standard descriptors are /dev/console.
func startTiny(path string, args []string, attr *syscall.SysProcAttr) (int, error) {
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Sys: attr})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	return pid, nil
}

// startMany starts n idle processes, named by their number.
func startMany(n int) error {
	for i := range n {
		name := fmt.Sprintf("idle-%06d", i)
		attr := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(i % 50), Gid: uint32(i % 7)}}
		if _, err := startTiny(tinyDir+"/idle", []string{name, "--number", fmt.Sprint(i)}, attr); err != nil {
			return fmt.Errorf("process %d of %d: %w", i, n, err)
		}
	}
	return nil
}
