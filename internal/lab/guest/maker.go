package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// maker collects what a role makes. The first failure is kept; what only some
// kernels can do is told as missing instead.
type maker struct {
	info map[string]any
	err  error
}

func newMaker() *maker { return &maker{info: map[string]any{}} }

// do runs one step unless one failed before.
func (m *maker) do(name string, f func() error) {
	if m.err != nil {
		return
	}
	if err := f(); err != nil && m.err == nil {
		m.err = fmt.Errorf("%s: %w", name, err)
	}
}

// fd notes a descriptor under a name and returns it.
func (m *maker) fd(name string, fd int, err error) int {
	if err != nil {
		if m.err == nil {
			m.err = fmt.Errorf("%s: %w", name, err)
		}
		return -1
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil && m.err == nil {
		m.err = fmt.Errorf("%s: stat: %w", name, err)
	}
	m.info[name] = map[string]any{"fd": fd, "inode": st.Ino}
	return fd
}

// maybe is fd for what this kernel may lack; it returns -1 then.
func (m *maker) maybe(name string, fd int, err error) int {
	if err != nil {
		m.missing(name, err)
		return -1
	}
	return m.fd(name, fd, nil)
}

func (m *maker) missing(name string, err error) {
	m.info[name] = map[string]any{"missing": err.Error()}
}

// stay says that the state stands and keeps it for ever.
func (m *maker) stay() error {
	if m.err != nil {
		return m.err
	}
	if err := ready(m.info); err != nil {
		return err
	}
	for {
		unix.Pause()
	}
}
