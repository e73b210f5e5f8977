package kernel

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/umbravm/umbra/btf"
)

func TestCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	c, err := OpenCache(dir)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("types"))
	m := c.open(digest)
	if m.hit {
		t.Error("an entry nobody wrote")
	}
	want := btf.Field{Name: "a.b", Offset: 8, Size: 4, Known: true}
	m.add("a.b", want)
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	again := c.open(digest)
	if f, ok := again.field("a.b"); !again.hit || !ok || f != want {
		t.Errorf("read back: %v, %v, %v", f, ok, again.hit)
	}
	if other := c.open(sha256.Sum256([]byte("others"))); other.hit {
		t.Error("another table's entry")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, damaged := range []string{"", "null", "{", "[]", `{"a.b":7}`} {
		if err := os.WriteFile(filepath.Join(dir, files[0].Name()), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		m := c.open(digest)
		if _, ok := m.field("a.b"); ok || m.hit {
			t.Errorf("an answer from a file that holds %q", damaged)
		}
		m.add("c.d", want)
		if err := m.save(); err != nil {
			t.Errorf("over a file that holds %q: %v", damaged, err)
		}
	}
}

// TestCacheOfOthers refuses a directory whose entries others could have written.
func TestCacheOfOthers(t *testing.T) {
	dir := t.TempDir()
	c, err := OpenCache(dir)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("types"))
	m := c.open(digest)
	m.add("a.b", btf.Field{Known: true})
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCache(dir); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a directory everybody can write to: %v", err)
	}
	if m := c.open(digest); m.hit {
		t.Error("an entry anybody could have written is believed")
	}
	if os.Geteuid() != 0 {
		return // only root can give a directory away
	}
	if err := errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, 12345, 12345)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCache(dir); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("another user's directory: %v", err)
	}
}
