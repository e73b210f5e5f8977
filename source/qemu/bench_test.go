package qemu

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/mem"
)

// Each benchmark reads ranges at random places of 256 MiB of guest RAM that has
// been written to.
const benchRAM = 256 * mib

// benchReads are count ranges of size bytes.
func benchReads(count, size int) []mem.Read {
	rng := rand.New(rand.NewPCG(1, 2))
	reads := make([]mem.Read, count)
	for i := range reads {
		reads[i] = mem.Read{Addr: mem.Phys(mib + rng.Uint64N(benchRAM-2*mib)), Buf: make([]byte, size)}
	}
	return reads
}

var benchSizes = []struct{ count, size int }{{1, 8}, {100, 64}, {1000, 64}, {1000, 4096}, {1, 4 * mib}}

// BenchmarkRead reads a machine in every way there is.
func BenchmarkRead(b *testing.B) {
	for _, way := range []struct {
		name string
		args func(testing.TB) []string
	}{
		{"pread", fixed("-m", "256", "-machine", "memory-backend=m", "-object", "memory-backend-memfd,id=m,size=256M,prealloc=on")},
		{"process_vm_readv", fixed("-m", "256", "-machine", "memory-backend=m", "-object", "memory-backend-ram,id=m,size=256M,prealloc=on")},
		{"proc-mem", fixed("-m", "256", "-machine", "memory-backend=m", "-object", "memory-backend-ram,id=m,size=256M,prealloc=on")},
		{"private-file", func(t testing.TB) []string {
			return []string{"-m", "256", "-machine", "memory-backend=m", "-object",
				"memory-backend-file,id=m,size=256M,prealloc=on,share=off,mem-path=" + ramFile(t)}
		}},
	} {
		v := startVM(b, vmOptions{args: way.args(b)})
		s := v.open(b)
		s.batch.denied = way.name == "proc-mem"
		for _, n := range benchSizes {
			b.Run(fmt.Sprintf("%s/%dx%d", way.name, n.count, n.size), func(b *testing.B) {
				reads := benchReads(n.count, n.size)
				b.SetBytes(int64(n.count * n.size))
				for b.Loop() {
					if err := s.ReadPhys(b.Context(), reads); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		s.Close()
		v.kill()
	}
}

// BenchmarkMapping is what copying out of a mapping of the RAM file would cost,
// for comparison with pread.
func BenchmarkMapping(b *testing.B) {
	f, err := os.Create(ramFile(b))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	zeros := make([]byte, mib)
	for range benchRAM / mib {
		if _, err := f.Write(zeros); err != nil {
			b.Fatal(err)
		}
	}
	m, err := unix.Mmap(int(f.Fd()), 0, benchRAM, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(m)
	for _, n := range benchSizes {
		b.Run(fmt.Sprintf("%dx%d", n.count, n.size), func(b *testing.B) {
			reads := benchReads(n.count, n.size)
			b.SetBytes(int64(n.count * n.size))
			for b.Loop() {
				for i := range reads {
					at := min(uint64(reads[i].Addr), uint64(benchRAM-n.size))
					copy(reads[i].Buf, m[at:])
				}
			}
		})
	}
}

// BenchmarkOpen attaches and detaches.
func BenchmarkOpen(b *testing.B) {
	for _, memory := range []string{"512M", "16G"} {
		b.Run(memory, func(b *testing.B) {
			v := startVM(b, vmOptions{args: []string{"-machine", "q35", "-m", memory}})
			for b.Loop() {
				s, err := Open(b.Context(), v.name)
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}

// BenchmarkRegisters asks through QMP.
func BenchmarkRegisters(b *testing.B) {
	s := startVM(b, vmOptions{args: []string{"-smp", "4"}}).open(b)
	for b.Loop() {
		if _, err := s.Registers(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPause pauses and resumes a running machine; ns/stop is how long it stood
// still.
func BenchmarkPause(b *testing.B) {
	s := startVM(b, vmOptions{running: true}).open(b)
	var stood int64
	for b.Loop() {
		resume, err := s.Pause(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		d, err := resume()
		if err != nil {
			b.Fatal(err)
		}
		stood += d.Nanoseconds()
	}
	b.ReportMetric(float64(stood)/float64(b.N), "ns/stop")
}
