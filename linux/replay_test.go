package linux

import (
	"bytes"
	"context"
	"encoding/json"
	flagpkg "flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/qemu"
	"github.com/umbravm/umbra/source/replay"
)

var update = flagpkg.Bool("update", false, "record testdata anew from running guests")

// recordedKernels have a bundle in testdata.
var recordedKernels = []string{"5.10", "7.2"}

// listings is everything this package lists, by command.
var listings = map[string]func(v *kernel.View) (any, error){
	"ps":         func(v *kernel.View) (any, error) { return Tasks(v, TaskOptions{Threads: true}) },
	"sockets":    func(v *kernel.View) (any, error) { return Sockets(v, SocketOptions{}) },
	"files":      func(v *kernel.View) (any, error) { return Files(v, FileOptions{}) },
	"maps":       func(v *kernel.View) (any, error) { return Maps(v, MapOptions{}) },
	"modules":    func(v *kernel.View) (any, error) { return Modules(v) },
	"dmesg":      func(v *kernel.View) (any, error) { return Dmesg(v) },
	"env":        func(v *kernel.View) (any, error) { return Env(v, 0) },
	"namespaces": func(v *kernel.View) (any, error) { return Namespaces(v) },
	"cgroups":    func(v *kernel.View) (any, error) { return Cgroups(v) },
	"info":       func(v *kernel.View) (any, error) { return ReadInfo(v) },
}

// TestReplay lists everything from recordings of real guests, as it was when they
// were recorded. With -update they are recorded anew.
func TestReplay(t *testing.T) {
	for _, version := range recordedKernels {
		t.Run(version, func(t *testing.T) {
			if *update {
				record(t, version)
			}
			k := attachRecorded(t, version)
			for _, name := range []string{"ps", "sockets", "modules"} {
				golden := filepath.Join("testdata", version+"-"+name+".json")
				rows, err := listings[name](view(t, k, mem.Options{}))
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				got, err := json.MarshalIndent(rows, "", " ")
				if err != nil {
					t.Fatal(err)
				}
				if *update {
					if err := os.WriteFile(golden, got, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), string(got)); diff != "" {
					t.Errorf("%s differs from %s:\n%s", name, golden, diff)
				}
			}
		})
	}
}

// record boots a guest and keeps what listing everything of it reads.
func record(t *testing.T, version string) {
	ctx := context.Background()
	g, err := lab.Boot(ctx, lab.Config{Kernel: version, MemMB: 256, QMP: true})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	src, err := qemu.Open(ctx, g.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	r := replay.Record(src, []string{"all"})
	k, err := kernel.Attach(ctx, r, kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, list := range listings {
		if _, err := list(k.View(ctx, mem.Options{})); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	b, err := r.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := b.Encode(&file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(recording(version), file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func recording(version string) string { return filepath.Join("testdata", version+".umbra") }

func attachRecorded(t testing.TB, version string) *kernel.Kernel {
	t.Helper()
	return attachTo(t, openRecorded(t, version))
}

func openRecorded(t testing.TB, version string) *replay.Source {
	t.Helper()
	src, err := replay.Open(context.Background(), recording(version))
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func attachTo(t testing.TB, src source.Source) *kernel.Kernel {
	t.Helper()
	k, err := kernel.Attach(context.Background(), src, kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return k
}
