package linux

import (
	"context"
	"testing"

	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// benchmarkListing lists from a recording: the walk alone, without system calls.
func benchmarkListing(b *testing.B, list func(v *kernel.View) (rows int, err error)) {
	k := attachRecorded(b, "7.2")
	rows, pages := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		v := k.View(context.Background(), mem.Options{})
		n, err := list(v)
		if err != nil {
			b.Fatal(err)
		}
		rows, pages = n, v.Snapshot().Stats().Pages
		v.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(rows), "ns/row")
	b.ReportMetric(float64(pages)/float64(rows), "pages/row")
}

func BenchmarkTasksBrief(b *testing.B) {
	benchmarkListing(b, func(v *kernel.View) (int, error) {
		rows, err := Tasks(v, TaskOptions{Brief: true})
		return len(rows), err
	})
}

func BenchmarkTasks(b *testing.B) {
	benchmarkListing(b, func(v *kernel.View) (int, error) {
		rows, err := Tasks(v, TaskOptions{})
		return len(rows), err
	})
}

func BenchmarkSockets(b *testing.B) {
	benchmarkListing(b, func(v *kernel.View) (int, error) {
		rows, err := Sockets(v, SocketOptions{})
		return len(rows), err
	})
}

func BenchmarkFiles(b *testing.B) {
	benchmarkListing(b, func(v *kernel.View) (int, error) {
		rows, err := Files(v, FileOptions{})
		return len(rows), err
	})
}
