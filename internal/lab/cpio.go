package lab

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// File modes of an archive's members, as in stat(2).
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioChar = 0o020000
)

// cpioWriter writes the "newc" archive that the kernel unpacks as its first
// root file system (init/initramfs.c): a header of 13 numbers of 8 hexadecimal
// digits behind a magic, the name, the content, each padded to 4 bytes.
type cpioWriter struct {
	w   io.Writer
	off int64
	ino uint32
	err error
}

func newCPIO(w io.Writer) *cpioWriter { return &cpioWriter{w: w} }

// Dir adds a directory; its parent must have been added before.
func (c *cpioWriter) Dir(name string, perm uint32) { c.member(name, cpioDir|perm, 0, 0, nil) }

// File adds a regular file.
func (c *cpioWriter) File(name string, perm uint32, data []byte) {
	c.member(name, cpioFile|perm, 0, 0, data)
}

// Char adds a character device.
func (c *cpioWriter) Char(name string, perm, major, minor uint32) {
	c.member(name, cpioChar|perm, major, minor, nil)
}

// Tree adds what lies below a directory, with owners and modes. Sockets and
// devices are left out.
func (c *cpioWriter) Tree(root string) error {
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var data []byte
		switch info.Mode().Type() {
		case fs.ModeDir:
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			data = []byte(target)
		case 0:
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		default:
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: its owner is not known", path)
		}
		c.owned(path[len(root)+1:], st.Mode, st.Uid, st.Gid, 0, 0, data)
		return c.err
	})
}

// Close ends the archive and returns the first error of all writes.
func (c *cpioWriter) Close() error {
	c.member("TRAILER!!!", 0, 0, 0, nil)
	return c.err
}

func (c *cpioWriter) member(name string, mode, major, minor uint32, data []byte) {
	c.owned(name, mode, 0, 0, major, minor, data)
}

func (c *cpioWriter) owned(name string, mode, uid, gid, major, minor uint32, data []byte) {
	if len(data) > 1<<31-1 {
		c.err = fmt.Errorf("archive member %s: %d bytes are too many", name, len(data))
	}
	c.ino++
	links := 1
	if mode&cpioDir != 0 {
		links = 2
	}
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, uid, gid, links, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	c.write([]byte(header + name + "\x00"))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.off += int64(n)
	c.err = err
}

func (c *cpioWriter) pad() {
	c.write(make([]byte, -c.off&3))
}
