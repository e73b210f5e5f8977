package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const page = 4096

// manyMappings is how many areas the process of manyMaps gets for sure: a maple
// tree of several levels.
const manyMappings = 600

// maps is a process with mappings of every kind.
func maps() error {
	m := newMaker()
	add := func(name string, fd int, pages, prot, flags int) []byte {
		if m.err != nil {
			return nil
		}
		b, err := unix.Mmap(fd, 0, pages*page, prot, flags)
		if err != nil {
			m.err = fmt.Errorf("map %s: %w", name, err)
			return nil
		}
		m.info[name] = fmt.Sprintf("%x", addressOf(b))
		return b
	}
	const rw = unix.PROT_READ | unix.PROT_WRITE
	const anon = unix.MAP_ANONYMOUS
	add("private", -1, 3, rw, unix.MAP_PRIVATE|anon)
	add("none", -1, 5, unix.PROT_NONE, unix.MAP_PRIVATE|anon)
	add("exec", -1, 1, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|anon)
	add("shared anonymous", -1, 4, rw, unix.MAP_SHARED|anon)
	if b := add("locked", -1, 2, rw, unix.MAP_PRIVATE|anon|unix.MAP_LOCKED); b != nil {
		b[0] = 1
	}
	if b := add("huge", -1, 1024, rw, unix.MAP_PRIVATE|anon); b != nil {
		if err := unix.Madvise(b, unix.MADV_HUGEPAGE); err != nil {
			m.missing("huge", err) // rt kernels have no huge pages
		}
		for i := 0; i < len(b); i += page {
			b[i] = 1
		}
	}
	if b := add("named", -1, 2, rw, unix.MAP_PRIVATE|anon); b != nil {
		if err := nameMapping(b, "umbra named"); err != nil {
			m.missing("named", err)
		}
	}
	m.do("file", func() error { return mapFile("/tmp/mapped file", false, add) })
	m.do("deleted file", func() error { return mapFile("/tmp/mapped and gone", true, add) })
	m.do("memfd", func() error {
		fd, err := unix.MemfdCreate("umbra memory", 0)
		if err != nil {
			return err
		}
		if err := unix.Ftruncate(fd, 3*page); err != nil {
			return err
		}
		add("memfd", fd, 3, rw, unix.MAP_SHARED)
		return unix.Close(fd)
	})
	m.do("System V", func() error {
		id, err := unix.SysvShmGet(0x756d, 2*page, 0o600|unix.IPC_CREAT)
		if err != nil {
			return err
		}
		_, err = unix.SysvShmAttach(id, 0, 0)
		return err
	})
	m.do("heap", func() error {
		top, _, _ := unix.RawSyscall(unix.SYS_BRK, 0, 0, 0)
		if now, _, _ := unix.RawSyscall(unix.SYS_BRK, top+4*page, 0, 0); now != top+4*page {
			return fmt.Errorf("brk stays at %#x", now)
		}
		return nil
	})
	return m.stay()
}

// mapFile maps a file three times: privately, shared, and its second page.
func mapFile(name string, gone bool, add func(string, int, int, int, int) []byte) error {
	if err := os.WriteFile(name, make([]byte, 3*page), 0o644); err != nil {
		return err
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	add(name+" private", fd, 3, unix.PROT_READ, unix.MAP_PRIVATE)
	add(name+" shared", fd, 2, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if _, err := unix.Mmap(fd, page, page, unix.PROT_READ, unix.MAP_PRIVATE); err != nil {
		return err
	}
	if gone {
		return os.Remove(name)
	}
	return nil
}

// manyMaps is a process with hundreds of areas.
func manyMaps() error {
	m := newMaker()
	m.do("map", func() error {
		b, err := unix.Mmap(-1, 0, manyMappings*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		m.info["start"] = strconv.FormatUint(addressOf(b), 16)
		m.info["areas"] = manyMappings
		for i := 0; i < manyMappings; i += 2 {
			if err := unix.Mprotect(b[i*page:(i+1)*page], unix.PROT_READ); err != nil {
				return err
			}
		}
		return nil
	})
	return m.stay()
}
