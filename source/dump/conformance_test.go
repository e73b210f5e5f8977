package dump

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/sourcetest"
)

// Every format, written by QEMU or by us, behaves as a source must.
func TestConformance(t *testing.T) {
	m := testMachine(t)
	from := open(t, m.file("elf"), Options{})
	type dumpFile struct {
		path string
		opts Options
	}
	dumps := map[string]dumpFile{
		"paging":   {path: m.file("paging")},
		"unfolded": {path: unfoldFile(t, m.file("kdump-zlib"))},
	}
	for _, f := range m.formats {
		dumps["QEMU's "+f] = dumpFile{path: m.file(f)}
	}
	for _, f := range []Format{ELF, LiME, Raw} {
		d := dumpFile{path: filepath.Join(t.TempDir(), string(f))}
		report, err := Write(context.Background(), d.path, from, f, WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if f == Raw {
			d.opts.Layout = report.Layout
		}
		dumps["our "+string(f)] = d
	}
	for name, d := range dumps {
		t.Run(name, func(t *testing.T) {
			sourcetest.Test(t, func(t *testing.T) (source.Source, sourcetest.Truth) {
				s, err := Open(context.Background(), d.path, d.opts)
				if err != nil {
					t.Fatal(err)
				}
				truth := sourcetest.Truth{Still: true, Layout: from.Info().Layout, Known: []sourcetest.Chunk{
					{Addr: 0, Data: m.ram[:1<<20]}, {Addr: dataAddr, Data: m.data},
				}}
				if name == "paging" {
					truth.Layout = mem.Layout{{Size: machineRAM}}
				}
				return s, truth
			})
		})
	}
}
