package main

// comparisons are the tests of package linux that take their machine from
// UMBRA_TEST_GUESTS.
const comparisons = "^Test(Tasks|Threads|Sockets|Files|Maps|Mounts|Modules|Dmesg|Env|Namespaces|Cgroups|Netdevs|Info|ModuleTypes)$"

// machines returns what make test-matrix runs: every generation in every flavour,
// the shapes a machine can have, and kernels between the generations.
func machines() []string {
	var list []string
	for _, kernel := range []string{"5.10", "6.1", "6.12", "7.2"} {
		for _, flavour := range []string{"cloud-amd64", "amd64", "rt-amd64"} {
			list = append(list, kernel+"/"+flavour+"/mem=384")
		}
		list = append(list,
			kernel+"/mem=384/smp=4/qmp",
			kernel+"/mem=384/cpu=max,la57=off/append=pti=on",
			kernel+"/mem=384/append=nopti/append=nokaslr",
			kernel+"/mem=5120/machine=pc/ram=stock")
	}
	return append(list,
		"6.12/rt-amd64/mem=384/smp=4",
		"6.1/mem=5120/qmp",
		"6.1/mem=384/append=pti=on/cpu=max,pcid=off",
		"7.2/mem=384/append=pti=on",
		"6.12/mem=384/cpu=qemu64",
		"5.10/mem=384/cpu=Skylake-Server-v4/append=pti=on",
		"6.12/mem=384/ram=memfd",
		"7.2/mem=512/numa=2/smp=2",
		"7.2/mem=512/numa=2/smp=2/ram=stock/machine=pc/qmp",
		"5.10/root=debian/mem=1024",
		"6.1/root=debian/mem=1024",
		"6.12/root=debian/mem=1024/smp=2",
		"7.2/root=debian/mem=1024",
		"experimental/root=debian/mem=1024",
		"6.1/mem=160", // with less, the definite state leaves too little to tell of it
		"bullseye:5.10.0-30/mem=384",
		"forky/mem=384",
		"trixie-security/mem=384",
		"bookworm-security/mem=384",
		"bookworm-backports:6.12.43+deb12/mem=384",
		"trixie-backports:6.16.3+deb13/mem=384",
		"trixie-backports:6.17.13+deb13/mem=384",
		"trixie-backports:6.18.15+deb13/mem=384",
		"trixie-backports:6.19.14+deb13/root=debian/mem=1024", // whose modules are not published any more
		"trixie-backports:7.0.13+deb13/root=debian/mem=1024",
		"trixie-backports:7.1.13+deb13/root=debian/mem=1024",
		"trixie-backports:7.2.6+deb13/mem=384",
		"trixie-backports:6.16.3+deb13/rt-amd64/mem=384",
		"experimental/mem=384",
		"experimental/rt-amd64/mem=384/smp=2")
}
