package linux

import (
	"context"
	"fmt"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
	"github.com/umbravm/umbra/source/qemu"
)

// counted counts the calls made to a source, each of which would be a round trip.
type counted struct {
	source.Source
	rounds int
}

func (c *counted) ReadPhys(ctx context.Context, reads []mem.Read) error {
	c.rounds++
	return c.Source.ReadPhys(ctx, reads)
}

// Info says that round trips cost, as they do from another host.
func (c *counted) Info() source.Info {
	i := c.Source.Info()
	i.Local = false
	return i
}

// TestRounds shows that the rounds of a listing do not grow with what it lists.
func TestRounds(t *testing.T) {
	for _, procs := range []int{0, 1000} {
		t.Run(fmt.Sprintf("%d more processes", procs), func(t *testing.T) {
			g := lab.Shared(t, lab.Config{MemMB: 512, QMP: true, Append: []string{fmt.Sprintf("umbra.procs=%d", procs)}})
			ctx := context.Background()
			src, err := qemu.Open(ctx, g.Name())
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			if err := g.Pause(ctx); err != nil {
				t.Fatal(err)
			}
			defer g.Resume(ctx)
			c := &counted{Source: src}
			k, err := kernel.Attach(ctx, struct {
				*counted
				source.RegisterReader
			}{c, src}, kernel.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range []struct {
				name  string
				limit int
			}{{"ps", 12}, {"sockets", 16}, {"files", 16}} {
				c.rounds = 0
				n := 0
				v := k.View(ctx, mem.Options{})
				switch l.name {
				case "ps":
					rows, e := Tasks(v, TaskOptions{})
					n, err = len(rows), e
				case "sockets":
					rows, e := Sockets(v, SocketOptions{})
					n, err = len(rows), e
				case "files":
					rows, e := Files(v, FileOptions{})
					n, err = len(rows), e
				}
				if err != nil {
					t.Errorf("%s: %v", l.name, err)
					continue
				}
				t.Logf("%s: %d rows in %d rounds, %d pages", l.name, n, c.rounds, v.Snapshot().Stats().Pages)
				if c.rounds > l.limit {
					t.Errorf("%s: %d rows in %d rounds, more than %d", l.name, n, c.rounds, l.limit)
				}
				if l.name == "ps" && n < 50+procs {
					t.Errorf("only %d processes", n)
				}
			}
		})
	}
}
