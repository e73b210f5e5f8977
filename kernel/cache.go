package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/umbravm/umbra/btf"
)

// Cache keeps what was decoded from kernels' type tables in a directory, one small
// file per table, named by the SHA-256 of the table's bytes as they lie in the
// guest's memory. A guest can only ever fill the entry of its own bytes.
type Cache struct{ dir string }

// cacheFormat is part of the file names: it changes with the meaning of entries.
const cacheFormat = "fields-1-"

// maxMemo bounds the questions one entry remembers.
const maxMemo = 1 << 16

// maxEntry bounds the file of one entry, in bytes.
const maxEntry = 16 << 20

// OpenCache uses dir, or umbra under the user's cache directory when dir is "". It
// fails when another user could write there: root is often run with the environment
// of somebody else.
func OpenCache(dir string) (*Cache, error) {
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(base, "umbra", "kernels")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	c := &Cache{dir}
	root, err := c.root()
	if err != nil {
		return nil, err
	}
	return c, root.Close()
}

// root opens the directory and checks whose it is. What is done through it cannot be
// led elsewhere by whoever owns a directory above.
func (c *Cache) root() (*os.Root, error) {
	root, err := os.OpenRoot(c.dir)
	if err != nil {
		return nil, err
	}
	fi, err := root.Stat(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
		err := fmt.Errorf("cache directory %s: %w: others can write to it", c.dir, fs.ErrPermission)
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// memo is the questions asked of one BTF table and their answers.
type memo struct {
	cache  *Cache
	name   string // of the file
	mu     sync.Mutex
	fields map[string]btf.Field
	dirty  bool
	hit    bool
}

// open returns the entry of a table, empty when there is none that can be read. A
// nil cache opens nil, which remembers nothing.
func (c *Cache) open(digest [sha256.Size]byte) *memo {
	if c == nil {
		return nil
	}
	m := &memo{cache: c, name: cacheFormat + hex.EncodeToString(digest[:])}
	data, err := c.load(m.name)
	if err == nil && json.Unmarshal(data, &m.fields) == nil && m.fields != nil && len(m.fields) <= maxMemo {
		m.hit = true
		return m
	}
	m.fields = make(map[string]btf.Field)
	return m
}

func (c *Cache) load(name string) ([]byte, error) {
	root, err := c.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntry))
}

func (m *memo) field(path string) (btf.Field, bool) {
	if m == nil {
		return btf.Field{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f, ok := m.fields[path]
	return f, ok
}

func (m *memo) add(path string, f btf.Field) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.fields) < maxMemo {
		m.fields[path], m.dirty = f, true
	}
}

// save writes the entry when it gained answers. Readers see the old file or the
// whole new one.
func (m *memo) save() error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirty {
		return nil
	}
	data, err := json.Marshal(m.fields)
	if err != nil {
		return err
	}
	root, err := m.cache.root()
	if err != nil {
		return err
	}
	defer root.Close()
	temp := fmt.Sprintf(".new-%016x", rand.Uint64())
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(temp, m.name)
	}
	if err != nil {
		return errors.Join(err, root.Remove(temp))
	}
	m.dirty = false
	return nil
}

// Save keeps what was learned of the kernel's types for the next attach.
func (k *Kernel) Save() error { return k.types.memo.save() }
