package lab

import (
	"reflect"
	"testing"
)

func TestParseConfig(t *testing.T) {
	for text, want := range map[string]Config{
		"6.1": {Kernel: "6.1"},
		"7.2/rt-amd64/smp=4/mem=5120/cpu=max,la57=off/ram=stock/machine=pc/append=nokaslr/append=pti=on": {
			Kernel: "7.2", Flavour: "rt-amd64", CPUs: 4, MemMB: 5120, CPUModel: "max,la57=off", RAM: RAMStock,
			Machine: "pc", Append: []string{"nokaslr", "pti=on"}},
		"trixie-backports:6.19.14+deb13/numa=2/smp=2/qmp": {Kernel: "trixie-backports:6.19.14+deb13", NUMA: 2, CPUs: 2, QMP: true},
		"experimental/amd64":                              {Kernel: "experimental", Flavour: "amd64"},
	} {
		if got, err := ParseConfig(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "6.1/", "6.1/arm64", "6.1/smp=x", "6.1/mem=1", "6.1/ram=none", "no such suite",
		"../etc", "trixie:", "trixie:-o=x", "trixie:6.1 evil", "6.1/numa=2", "6.1/root=debian", "6.1/root=x/mem=2048"} {
		if got, err := ParseConfig(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestParseOrigin(t *testing.T) {
	for text, want := range map[string]origin{
		"5.10":              {name: "5.10", from: suites["5.10"]},
		"bookworm-security": {name: "bookworm-security", from: [][2]string{{"debian-security", "bookworm-security"}}},
		"experimental":      {name: "experimental", from: [][2]string{{"debian", "experimental"}}},
		"trixie-backports:7.1.13+deb13": {name: "trixie-backports_7.1.13+deb13",
			from: [][2]string{{"debian", "trixie-backports"}}, image: "7.1.13+deb13"},
	} {
		if got, err := parseOrigin(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}
