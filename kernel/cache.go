package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"

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

// OpenCache uses dir, or umbra under the user's cache directory when dir is "".
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
	return &Cache{dir}, nil
}

// memo is the questions asked of one BTF table and their answers.
type memo struct {
	path   string
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
	m := &memo{path: filepath.Join(c.dir, cacheFormat+hex.EncodeToString(digest[:])), fields: make(map[string]btf.Field)}
	data, err := os.ReadFile(m.path)
	if err == nil && json.Unmarshal(data, &m.fields) == nil && len(m.fields) <= maxMemo {
		m.hit = true
		return m
	}
	clear(m.fields)
	return m
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
	f, err := os.CreateTemp(filepath.Dir(m.path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), m.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	m.dirty = false
	return nil
}

// Save keeps what was learned of the kernel's types for the next attach.
func (k *Kernel) Save() error { return k.types.memo.save() }
