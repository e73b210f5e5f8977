package dump

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/umbravm/umbra/mem"
)

// BenchmarkRead reads single pages, each once in a round, as a walk does.
func BenchmarkRead(b *testing.B) {
	m := testMachine(b)
	for _, name := range []string{"elf", "kdump-zlib", "testdata/makedumpfile-lzo.kdump"} {
		path := name
		if filepath.Dir(name) == "." {
			path = m.file(name)
		}
		b.Run(filepath.Base(name), func(b *testing.B) {
			s := open(b, path, Options{})
			l := s.Info().Layout
			b.SetBytes(mem.PageSize)
			reads := []mem.Read{{Buf: make([]byte, mem.PageSize)}}
			e, at := 0, l[0].Start
			for b.Loop() {
				reads[0].Addr = at
				if err := s.ReadPhys(context.Background(), reads); err != nil || reads[0].Err != nil {
					b.Fatal(err, reads[0].Err)
				}
				if at += mem.PageSize; at >= l[e].End() {
					e = (e + 1) % len(l)
					at = l[e].Start
				}
			}
		})
	}
}

// BenchmarkOpen is what a dump adds to attaching.
func BenchmarkOpen(b *testing.B) {
	m := testMachine(b)
	for _, name := range []string{"elf", "kdump-zlib"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				s, err := Open(context.Background(), m.file(name), Options{})
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}
