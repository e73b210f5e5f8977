package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// docs/commands is what the program says of itself; make docs refreshes it.
func TestDocs(t *testing.T) {
	dir := t.TempDir()
	run0(t, "man", "--markdown", dir)
	want, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil || len(want) < 20 {
		t.Fatalf("%d pages, %v", len(want), err)
	}
	const kept = "../../docs/commands"
	have, err := os.ReadDir(kept)
	if err != nil {
		t.Fatal(err)
	}
	if len(have) != len(want) {
		t.Errorf("%d pages in docs/commands, %d commands: run make docs", len(have), len(want))
	}
	for _, page := range want {
		now, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if old, err := os.ReadFile(filepath.Join(kept, filepath.Base(page))); err != nil || !bytes.Equal(old, now) {
			t.Errorf("%s is out of date: run make docs", filepath.Base(page))
		}
	}
}
