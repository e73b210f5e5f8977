package lab

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const dirPrefix = "umbra-lab-"

// newDir makes a directory for a running machine and locks it for as long as
// this process lives, so that what a killed process left behind can be told from
// what is in use.
func newDir(parent string) (dir string, lock *os.File, err error) {
	dir, err = os.MkdirTemp(parent, dirPrefix)
	if err != nil {
		return "", nil, err
	}
	lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, lock, nil
}

// sweep removes directories whose owner died without Close.
func sweep(parents ...string) {
	for _, parent := range parents {
		entries, err := os.ReadDir(parent)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() && strings.HasPrefix(e.Name(), dirPrefix) {
				sweepDir(filepath.Join(parent, e.Name()))
			}
		}
	}
}

// sweepDir removes dir when nobody holds its lock. One without a lock file, or of
// the last minute, is just being made, or not ours.
func sweepDir(dir string) {
	if st, err := os.Stat(dir); err != nil || time.Since(st.ModTime()) < time.Minute {
		return
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		os.RemoveAll(dir)
	}
}

// ramParent returns where RAM files go: a tmpfs when there is one to write to.
func ramParent() string {
	const shm = "/dev/shm"
	if syscall.Access(shm, 2) == nil { // W_OK
		return shm
	}
	return os.TempDir()
}
