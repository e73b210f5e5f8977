package ksym

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// fileImage is an image that lies in one piece in a file.
type fileImage struct {
	file       *os.File
	base       mem.Virt
	start      int64
	size       uint64
	reads, sum int
}

func (f *fileImage) Base() mem.Virt { return f.base }
func (f *fileImage) Size() uint64   { return f.size }
func (f *fileImage) ReadAt(p []byte, off int64) (int, error) {
	f.reads++
	f.sum += len(p)
	return f.file.ReadAt(p, f.start+off)
}

// TestGuests compares the table read out of running guests' memory with what
// their kernels say in /proc/kallsyms, symbol by symbol.
func TestGuests(t *testing.T) {
	for _, version := range lab.Kernels() {
		t.Run(version, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			g, err := lab.Boot(ctx, lab.Config{Kernel: version, MemMB: 256})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			want := guestSymbols(t, ctx, g)
			img := guestImage(t, ctx, g, want)
			table, err := Find(img)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d symbols, addresses %v, digest %x, %d reads of %d KB in all",
				g.Kernel().Release, table.Len(), table.Encoding(), table.Digest(), img.reads, img.sum>>10)
			got := slices.Collect(table.All())
			if len(got) != len(want) {
				t.Errorf("%d symbols, the guest has %d", len(got), len(want))
			}
			for i := range min(len(got), len(want)) {
				if got[i] != want[i] {
					t.Fatalf("symbol %d is %+v, the guest says %+v", i, got[i], want[i])
				}
			}
			checkFixture(t, g.Kernel().Release, table, img)
		})
	}
}

// guestSymbols returns the guest's own list, without modules' and BPF programs'.
func guestSymbols(t *testing.T, ctx context.Context, g *lab.Guest) []Symbol {
	t.Helper()
	text, err := g.Ask(ctx, "cat /proc/kallsyms")
	if err != nil {
		t.Fatal(err)
	}
	var syms []Symbol
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) > 3 {
			continue // [module]
		}
		if len(f) != 3 || len(f[1]) != 1 {
			t.Fatalf("line %q in the guest's /proc/kallsyms", lines.Text())
		}
		addr, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		syms = append(syms, Symbol{f[2], f[1][0], mem.Virt(addr)})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return syms
}

// guestImage finds the kernel's image in the guest's RAM file with the guest's
// help: /proc/iomem says where it is.
func guestImage(t *testing.T, ctx context.Context, g *lab.Guest, syms []Symbol) *fileImage {
	t.Helper()
	text, err := g.Ask(ctx, "cat /proc/iomem")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(g.RAMPath())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	img := &fileImage{file: f}
	for line := range strings.Lines(string(text)) {
		if strings.HasSuffix(line, " : Kernel code\n") {
			if _, err := fmt.Sscanf(line, "%x-", &img.start); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
		}
	}
	for _, s := range syms {
		switch s.Name {
		case "_text":
			img.base = s.Addr
		case "_end":
			img.size = uint64(s.Addr - img.base)
		}
	}
	if img.start == 0 || img.base == 0 {
		t.Fatalf("the guest's kernel is at %#x, %v", img.start, img.base)
	}
	return img
}
