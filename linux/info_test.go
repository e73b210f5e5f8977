package linux

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// TestInfo compares what is told of a machine with what its kernel says.
func TestInfo(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) { compareInfo(t, g, g.Config().CPUs) })
}

// TestInfoTwoCPUs has two CPUs, of which either may keep the time.
func TestInfoTwoCPUs(t *testing.T) {
	compareInfo(t, lab.Shared(t, lab.Config{MemMB: 256, CPUs: 2, Append: []string{"umbra.state=0"}}), 2)
}

func compareInfo(t *testing.T, g *lab.Guest, cpus int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	k := attach(t, g)
	notes, err := g.Ask(ctx, "cat /sys/kernel/notes")
	if err != nil {
		t.Fatal(err)
	}
	tree := ask(t, g, "1")
	v := view(t, k, mem.Options{})
	info, err := ReadInfo(v)
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Errors) > 0 || info.Moved {
		t.Fatalf("errors %v, moved %v", info.Errors, info.Moved)
	}
	text := func(name string) string { return strings.TrimSpace(string(tree.Files[name])) }
	for _, c := range []struct{ what, got, want string }{
		{"banner", info.Banner, text("version")},
		{"release", *info.Release, text("sys/kernel/osrelease")},
		{"hostname", *info.Hostname, text("sys/kernel/hostname")},
		{"boot_id", *info.BootID, text("sys/kernel/random/boot_id")},
		{"arch", *info.Arch, "x86_64"},
		{"name", info.Name, g.Name()},
		{"cpus", fmt.Sprint(*info.CPUs), fmt.Sprint(strings.Count(text("cpuinfo"), "processor\t"))},
		{"cpus", fmt.Sprint(*info.CPUs), fmt.Sprint(cpus)},
		// But for the 384 KiB below 1 MiB, which only QMP tells to be RAM or not.
		{"memory", fmt.Sprint((info.Memory + 384<<10) >> 20), fmt.Sprint(g.Config().MemMB)},
	} {
		if c.got != c.want {
			t.Errorf("%s: %q, the guest says %q", c.what, c.got, c.want)
		}
	}
	// A note's header, name and type, then the id itself.
	id, err := hex.DecodeString(*info.BuildID)
	if err != nil || len(id) != 20 || !bytes.Contains(notes, append([]byte("\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00"), id...)) {
		t.Errorf("build id %s is not in the guest's notes (%v)", *info.BuildID, err)
	}
	if len(*info.BTFHash) != 64 || len(*info.SymbolHash) != 64 || info.Attach.PagesRead == 0 || info.Attach.Method == "" {
		t.Errorf("%+v", info)
	}
	if info.KASLR == nil || *info.KASLR != k.Slide() {
		t.Errorf("kaslr_offset %v, the image lies %#x from where it was linked", info.KASLR, k.Slide())
	}
	compareClock(t, ctx, g, &info, tree)
}

// compareClock holds the time against what the guest said before and says after.
func compareClock(t *testing.T, ctx context.Context, g *lab.Guest, info *Info, before *lab.ProcTree) {
	t.Helper()
	if err := g.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	after, err := g.Proc(ctx, "1")
	if err != nil {
		t.Fatal(err)
	}
	uptime := func(tree *lab.ProcTree) (s float64) {
		fmt.Sscan(string(tree.Files["uptime"]), &s)
		return s
	}
	btime := func(tree *lab.ProcTree) (s int64) {
		_, rest, _ := strings.Cut(string(tree.Files["stat"]), "\nbtime ")
		fmt.Sscan(rest, &s)
		return s
	}
	// The timekeeper is as old as the last tick, or several while the CPU is idle.
	const slack = 1.0
	lo, hi := uptime(before), uptime(after)
	if lo == 0 || *info.Uptime < lo-slack || *info.Uptime > hi+slack {
		t.Errorf("uptime %v, the guest said %v before and %v after", *info.Uptime, lo, hi)
	}
	if want := btime(before); want == 0 || info.BootTime.Unix() < want-1 || info.BootTime.Unix() > want+1 {
		t.Errorf("boot time %v, the guest says %d", info.BootTime, want)
	}
}

// TestModuleTypes compares a module's types with those the guest itself hands out.
func TestModuleTypes(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		k := attach(t, g)
		v := view(t, k, mem.Options{Batch: true})
		const field = "vring_virtqueue.split"
		own, err := g.Ask(ctx, "cat /sys/kernel/btf/virtio_ring")
		types, ourErr := k.ModuleTypes(v, "virtio_ring")
		if err != nil { // module BTF came with 5.11
			if !errors.Is(ourErr, kernel.ErrNoModuleTypes) {
				t.Fatalf("the guest has no types of the module (%v), but: %v", err, ourErr)
			}
			return
		}
		if ourErr != nil {
			t.Fatal(ourErr)
		}
		base, err := k.Types()
		if err != nil {
			t.Fatal(err)
		}
		wantTypes, err := btf.ParseSplit(own, base)
		if err != nil {
			t.Fatal(err)
		}
		got, err := types.Field(field)
		if err != nil {
			t.Fatal(err)
		}
		if want, err := wantTypes.Field(field); err != nil || got != want || got.Size == 0 {
			t.Errorf("%+v, the guest says %+v, %v", got, want, err)
		}
		if _, err := k.ModuleTypes(v, "no such module"); !errors.Is(err, kernel.ErrNoModuleTypes) {
			t.Errorf("no such module: %v", err)
		}
	})
}

func note(name string, kind byte, desc string) []byte {
	b := []byte{byte(len(name)), 0, 0, 0, byte(len(desc)), 0, 0, 0, kind, 0, 0, 0}
	for _, part := range []string{name, desc} {
		b = append(b, part...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

func TestNoteBuildID(t *testing.T) {
	id := "0123456789abcdefghij"
	good := append(note("Xen\x00", 3, "12345"), note("GNU\x00", 3, id)...)
	if got, err := noteBuildID(good); err != nil || string(got) != id {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range [][]byte{nil, good[:20], good[:len(good)-1], note("GNU\x00", 1, id), note("GNU\x00", 3, "")} {
		if got, err := noteBuildID(bad); err == nil {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

// FuzzNoteBuildID asserts that there is an id or an error, never both.
func FuzzNoteBuildID(f *testing.F) {
	f.Add(append(note("Xen\x00", 3, "12345"), note("GNU\x00", 3, "0123456789abcdefghij")...))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x03\x00\x00\x00GNU\x00"))
	f.Fuzz(func(t *testing.T, notes []byte) {
		id, err := noteBuildID(notes)
		if (err == nil) != (len(id) > 0) || len(id) > 64 || !bytes.Contains(notes, id) {
			t.Fatalf("%x, %v", id, err)
		}
	})
}
