package linux

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// bareGuest is a guest without the definite state, for tests that change what
// others look at.
func bareGuest(t *testing.T, version string) *lab.Guest {
	t.Helper()
	return lab.Shared(t, lab.Config{Kernel: version, MemMB: 256, Append: []string{"umbra.state=0"}})
}

// have starts a process in a role in the guest.
func have(t *testing.T, g *lab.Guest, role string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := g.Ask(ctx, "exec "+role); err != nil {
		t.Fatal(err)
	}
}

// TestDmesg compares the log with what the guest reads from /dev/kmsg.
func TestDmesg(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) { compareLog(t, g) })
}

// TestDmesgWrapped does so when the ring buffer has wrapped, with records of many
// lines, of none, of odd bytes and of all facilities.
func TestDmesgWrapped(t *testing.T) {
	for _, version := range testKernels {
		t.Run(version, func(t *testing.T) {
			g := bareGuest(t, version)
			have(t, g, "log")
			records := compareLog(t, g)
			if len(records) == 0 || records[0].Seq == 0 {
				t.Fatal("the ring buffer has not wrapped")
			}
			facilities, lines := map[string]bool{}, 0
			for _, r := range records {
				facilities[r.Facility] = true
				lines = max(lines, strings.Count(r.Text, "\n")+1)
			}
			if len(facilities) < 20 || lines < 4 {
				t.Errorf("%d facilities, records of at most %d lines", len(facilities), lines)
			}
		})
	}
}

func compareLog(t *testing.T, g *lab.Guest) []LogRecord {
	t.Helper()
	k := attach(t, g)
	tree := ask(t, g, "1")
	if why, ok := tree.Errors["kmsg"]; ok {
		t.Fatalf("the guest cannot read its log: %s", why)
	}
	want := kmsgRecords(string(tree.Files["kmsg"]))
	var records []LogRecord
	for _, batch := range []bool{false, true} {
		v := view(t, k, mem.Options{Batch: batch})
		var err error
		if records, err = Dmesg(v); err != nil {
			t.Fatal(err)
		}
		for _, f := range v.Findings() {
			t.Errorf("finding: %v", f)
		}
		// The kernel can have said more before it was paused.
		for len(records) > len(want) && len(want) > 0 && records[len(records)-1].Seq > kmsgSeq(want[len(want)-1]) {
			records = records[:len(records)-1]
		}
		if len(want) < 50 || len(records) != len(want) {
			t.Fatalf("%d records, the guest has %d", len(records), len(want))
		}
		for i := range records {
			if got := kmsgRecord(&records[i]); got != want[i] || records[i].Moved {
				t.Errorf("record %d, moved %v:\n got %q\nwant %q", i, records[i].Moved, got, want[i])
			}
		}
		if rounds := v.Snapshot().Stats().Rounds; batch && rounds > 12 {
			t.Errorf("%d records in %d rounds", len(records), rounds)
		}
	}
	return records
}

// kmsgRecords takes the text of /dev/kmsg apart: a line each, and lines that begin
// with a space for what belongs to it. The caller, which not all kernels print, is
// left out.
func kmsgRecords(text string) (records []string) {
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, " ") {
			records[len(records)-1] += "\n" + line
			continue
		}
		head, rest, _ := strings.Cut(line, ";")
		f := strings.Split(head, ",")
		records = append(records, strings.Join(f[:min(4, len(f))], ",")+";"+rest)
	}
	return records
}

func kmsgSeq(record string) (seq uint64) {
	var prio int
	fmt.Sscanf(record, "%d,%d,", &prio, &seq)
	return seq
}

// kmsgRecord writes a record as /dev/kmsg does.
func kmsgRecord(r *LogRecord) string {
	flag := '-'
	if r.Continued {
		flag = 'c'
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d,%d,%d,%c;", int(r.Source)<<3|int(r.Priority), r.Seq, r.Nanoseconds/1000, flag)
	for i := range len(r.Text) {
		if c := r.Text[i]; c < ' ' || c >= 127 || c == '\\' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	if r.Subsystem != nil {
		b.WriteString("\n SUBSYSTEM=" + *r.Subsystem)
	}
	if r.Device != nil {
		b.WriteString("\n DEVICE=" + *r.Device)
	}
	return b.String()
}

func TestLogBlock(t *testing.T) {
	const bits, size = 7, 128
	max := ^uint64(0)
	for _, c := range []struct {
		begin, next, length, at uint64
		ok                      bool
	}{
		{0, 16, 8, 0, true},
		{0, 16, 9, 0, false},              // more text than room
		{0, size, size - 8, 0, true},      // all of the ring
		{104, size + 24, 16, 0, true},     // wrapped to the start
		{104, size + 24, 17, 0, false},    //
		{104, 3*size + 24, 8, 0, false},   // two wraps
		{24, 16, 0, 0, false},             // backwards
		{8, 20, 1, 0, false},              // not aligned
		{16, 24, 0, 0, false},             // no room at all
		{max - 15, 0, 8, size - 16, true}, // positions overflow
		{max - 23, 16, 8, 0, true},        // and wrap
	} {
		at, err := logBlock(bits, c.begin, c.next, c.length)
		if (err == nil) != c.ok || c.ok && at != c.at {
			t.Errorf("from %#x to %#x, %d bytes: at %d, %v", c.begin, c.next, c.length, at, err)
		}
	}
}

// FuzzLogBlock asserts that a block lies in its ring.
func FuzzLogBlock(f *testing.F) {
	f.Add(uint8(17), uint64(0), uint64(64), uint64(50))
	f.Add(uint8(17), ^uint64(0)-23, uint64(40), uint64(20))
	f.Fuzz(func(t *testing.T, bits uint8, begin, next, length uint64) {
		sizeBits := uint64(bits)%(maxLogSizeBits-2) + 3
		at, err := logBlock(sizeBits, begin, next, length)
		if err != nil {
			if at != 0 {
				t.Fatalf("both %d and %v", at, err)
			}
			return
		}
		if end := at + logIDSize + length; at%logIDSize != 0 || end < at || end > 1<<sizeBits {
			t.Fatalf("%d bytes at %d in a ring of 2^%d", length, at, sizeBits)
		}
	})
}
