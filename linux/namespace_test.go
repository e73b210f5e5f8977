package linux

import (
	"fmt"
	"strings"
	"testing"

	"github.com/umbravm/umbra/internal/lab"
	"github.com/umbravm/umbra/mem"
)

// TestNamespaces compares the namespaces with the links in the guest's /proc/PID/ns.
func TestNamespaces(t *testing.T) {
	onEachKernel(t, func(t *testing.T, g *lab.Guest) {
		k := attach(t, g)
		tree := ask(t, g, "all", "ns,comm")
		for _, batch := range []bool{false, true} {
			v := view(t, k, mem.Options{Batch: batch})
			rows, err := Namespaces(v)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Findings() {
				t.Errorf("finding: %v", f)
			}
			compareNamespaces(t, rows, tree)
			if rounds := v.Snapshot().Stats().Rounds; batch && rounds > 20 {
				t.Errorf("%d namespaces in %d rounds", len(rows), rounds)
			}
		}
	})
}

type nsUse struct{ processes, first int }

// nsUses reads "mnt:[4026531841]" and its like.
func nsUses(tree *lab.ProcTree) map[string]nsUse {
	uses := map[string]nsUse{}
	for _, pid := range tree.PIDs() {
		for _, kind := range []string{"mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time"} {
			target, ok := tree.Links[fmt.Sprintf("%d/ns/%s", pid, kind)]
			if !ok {
				continue
			}
			u := uses[target]
			if u.processes++; u.first == 0 || pid < u.first {
				u.first = pid
			}
			uses[target] = u
		}
		for _, kind := range []string{"pid", "time"} {
			if target, ok := tree.Links[fmt.Sprintf("%d/ns/%s_for_children", pid, kind)]; ok {
				u := uses[target] // a namespace even when no process is in it yet
				uses[target] = u
			}
		}
	}
	return uses
}

func compareNamespaces(t *testing.T, rows []Namespace, tree *lab.ProcTree) {
	t.Helper()
	want := nsUses(tree)
	kinds, byInode := map[string]int{}, map[uint64]*Namespace{}
	for i := range rows {
		byInode[rows[i].Inode] = &rows[i]
	}
	for i := range rows {
		n := &rows[i]
		name := fmt.Sprintf("%s:[%d]", n.Type, n.Inode)
		kinds[n.Type]++
		if len(n.Errors) > 0 || n.Moved {
			t.Errorf("%s: errors %v, moved %v", name, n.Errors, n.Moved)
		}
		u, ok := want[name]
		if delete(want, name); !ok && n.Processes > 0 {
			t.Errorf("%s has %d processes here, the guest does not know it", name, n.Processes)
			continue
		}
		if n.Processes != u.processes || (n.PID == nil) != (u.first == 0) || n.PID != nil && *n.PID != u.first {
			t.Errorf("%s: %d processes, the guest says %+v", name, n.Processes, u)
		}
		checkOwner(t, name, n, byInode)
	}
	for name, u := range want {
		t.Errorf("%s, %+v, is not listed", name, u)
	}
	for _, kind := range []string{"mnt", "uts", "ipc", "net", "pid", "user", "cgroup"} {
		if kinds[kind] < least(t, 2) {
			t.Errorf("%d %s namespaces: the guest's state has more", kinds[kind], kind)
		}
	}
}

// checkOwner holds what /proc does not tell against what must be so.
func checkOwner(t *testing.T, name string, n *Namespace, byInode map[uint64]*Namespace) {
	t.Helper()
	const initUser, initPID = 4026531837, 4026531836 // include/linux/proc_ns.h
	initial := n.Inode == initUser || n.Inode == initPID
	if (n.UserNS == nil) != (n.Inode == initUser) {
		t.Errorf("%s: owner %v", name, n.UserNS)
	}
	if n.UserNS != nil && (byInode[*n.UserNS] == nil || byInode[*n.UserNS].Type != "user") {
		t.Errorf("%s: owner %d is no user namespace", name, *n.UserNS)
	}
	nested := n.Type == "pid" || n.Type == "user"
	if (n.Parent != nil) != (nested && !initial) {
		t.Errorf("%s: parent %v", name, n.Parent)
	}
	if n.Parent != nil && (byInode[*n.Parent] == nil || byInode[*n.Parent].Type != n.Type) {
		t.Errorf("%s: parent %d is no %s namespace", name, *n.Parent, n.Type)
	}
	if (n.OwnerUID != nil) != (n.Type == "user") || n.OwnerUID != nil && *n.OwnerUID != 0 {
		t.Errorf("%s: made by user %v, not root", name, n.OwnerUID)
	}
	if n.Comm != nil && strings.TrimSpace(*n.Comm) == "" && n.Processes > 1 {
		t.Errorf("%s: first process without a name", name)
	}
}
