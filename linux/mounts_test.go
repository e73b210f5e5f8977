package linux

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// TestMounts compares the mounts of every namespace with the guest's own
// /proc/PID/mountinfo, field by field.
func TestMounts(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		tree := ask(t, g, "all", "mountinfo,ns")
		for _, batch := range []bool{false, true} {
			v := view(t, k, mem.Options{Batch: batch})
			mounts, err := Mounts(v, MountOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Findings() {
				t.Errorf("finding: %v", f)
			}
			compareMounts(t, mounts, tree)
			if rounds := v.Snapshot().Stats().Rounds; batch && rounds > 22 { // mounts lie in a tree since 6.8, whose depth adds rounds
				t.Errorf("%d mounts in %d rounds, more than 22", len(mounts), rounds)
			}
		}
		// A process in a chroot sees the mounts below it only.
		for _, pid := range tree.PIDs() {
			info, ok := tree.Files[fmt.Sprintf("%d/mountinfo", pid)]
			if !ok || len(info) == 0 || pid%7 != 0 {
				continue
			}
			mounts, err := Mounts(view(t, k, mem.Options{}), MountOptions{PID: pid})
			if err != nil {
				t.Errorf("mounts of %d: %v", pid, err)
			}
			compareView(t, pid, mounts, string(info))
		}
	})
}

// compareMounts compares each namespace with what its lowest process is shown.
func compareMounts(t *testing.T, mounts []Mount, tree *lab.ProcTree) {
	t.Helper()
	byPID := map[int][]Mount{}
	for _, m := range mounts {
		byPID[m.PID] = append(byPID[m.PID], m)
	}
	namespaces := map[string]bool{}
	for _, pid := range tree.PIDs() {
		ns := tree.Links[fmt.Sprintf("%d/ns/mnt", pid)]
		if ns == "" || namespaces[ns] {
			continue
		}
		namespaces[ns] = true
		compareView(t, pid, byPID[pid], string(tree.Files[fmt.Sprintf("%d/mountinfo", pid)]))
		for _, m := range byPID[pid] {
			if got := fmt.Sprintf("mnt:[%d]", *m.Namespace); got != ns {
				t.Errorf("pid %d: %s, the guest says %s", pid, got, ns)
			}
		}
		delete(byPID, pid)
	}
	for pid := range byPID {
		t.Errorf("a namespace of %d that the guest does not tell of", pid)
	}
	if outside := strings.Contains(propagation(mounts), "propagate_from:"); !outside && definite(t) {
		t.Error("no mount has its master outside of its namespace")
	}
	if len(namespaces) < 2 {
		t.Errorf("%d mount namespaces only", len(namespaces))
	}
}

// propagation joins what all mounts say of it.
func propagation(mounts []Mount) string {
	var all []string
	for _, m := range mounts {
		all = append(all, m.Propagation...)
	}
	return strings.Join(all, " ")
}

func compareView(t *testing.T, pid int, mounts []Mount, info string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(info, "\n"), "\n")
	if info == "" {
		lines = nil
	}
	for i := range max(len(lines), len(mounts)) {
		if i >= len(lines) || i >= len(mounts) {
			t.Errorf("pid %d: %d mounts, the guest says %d", pid, len(mounts), len(lines))
			return
		}
		got, err := infoFields(&mounts[i])
		if err != nil {
			t.Errorf("pid %d, mount %d: %v", pid, i, err)
			continue
		}
		if want := guestFields(lines[i], got); got != want {
			t.Errorf("pid %d, mount %d is\n%q, the guest says\n%q", pid, i, got, want)
		}
	}
}

// infoFields joins what was read in the order of /proc/PID/mountinfo.
func infoFields(m *Mount) (string, error) {
	if len(m.Errors) > 0 || m.Moved || m.FSOptions != nil {
		return "", fmt.Errorf("moved %v, errors %q", m.Moved, m.Errors)
	}
	head := []string{fmt.Sprint(*m.ID), fmt.Sprint(*m.ParentID), *m.Device, *m.Root, *m.Mountpoint, *m.Options}
	head = append(head, m.Propagation...)
	return strings.Join(append(head, "-", *m.FSType, *m.Source, *m.SuperOptions), " | "), nil
}

var octal = regexp.MustCompile(`\\[0-7]{3}`)

// sharedOption are the options that every file system can have.
var sharedOption = regexp.MustCompile(`^(sync|dirsync|mand|lazytime)(,|$)`)

// guestFields renders a line of mountinfo as infoFields does: with names as they
// are, and of the last field only what got has when that is how it begins. The rest
// is the file system's own.
func guestFields(line, got string) string {
	fields := strings.Split(line, " ")
	for i, f := range fields {
		fields[i] = octal.ReplaceAllStringFunc(f, func(s string) string {
			n, _ := strconv.ParseUint(s[1:], 8, 8)
			return string([]byte{byte(n)})
		})
	}
	options := fields[len(fields)-1]
	own := got[strings.LastIndex(got, " | ")+3:]
	if rest, ok := strings.CutPrefix(options, own+","); ok && !sharedOption.MatchString(rest) {
		fields[len(fields)-1] = own
	}
	return strings.Join(fields, " | ")
}
