package lab

import (
	"fmt"
	"strings"
)

// RAMKind says how QEMU holds the guest's memory.
type RAMKind int

const (
	RAMFile  RAMKind = iota // a file others can map
	RAMStock                // private to the QEMU process, as without any option
	RAMMemfd                // a memfd, reachable through QEMU's descriptors
)

func (k RAMKind) String() string { return [...]string{"file", "stock", "memfd"}[k] }

// Config says what machine to boot. The zero value is a machine with Debian's
// 6.1 cloud kernel, 512 MiB of RAM in a file and one CPU.
type Config struct {
	Kernel   string // one of Kernels(), SUITE or SUITE:RELEASE; "" is "6.1"
	Flavour  string // "cloud-amd64" (also ""), "amd64", "rt-amd64"
	MemMB    int    // RAM in MiB; 0 is 512
	CPUs     int    // 0 is 1
	CPUModel string // QEMU's -cpu; "" is "max"
	Machine  string // QEMU's -machine type; "" is "q35"
	Root     string // "" for the guest program alone, "debian" for a Debian system
	Append   []string
	RAM      RAMKind
	MemPath  string // RAM's file with RAMFile; "" chooses one
	KeepRAM  bool   // neither remove MemPath before the boot nor at Close
	NUMA     int    // nodes that RAM is split into; 0 is no NUMA
	Name     string // QEMU's -name; "" makes one up
	QMP      bool   // offer a QMP socket, see Guest.QMPPath
	NoOracle bool   // boot without the oracle's device and program
	Serial   bool   // oracle on the second UART, not on virtio-serial
	Accel    string // "kvm", "tcg"; "" takes what works here

	// Append are words for the kernel's command line. The guest program knows:
	//   umbra.procs=N   N more processes of a few pages each
	//   umbra.socks=N   N more sockets, in one process
	//   umbra.state=0   nothing but init and the oracle
	//   umbra.load=a,b  modules to load besides the usual ones

	ExtraArgs []string // for QEMU's command line, last
}

// withDefaults returns c with what was left out filled in.
func (c Config) withDefaults() Config {
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	set(&c.Kernel, "6.1")
	set(&c.Flavour, "cloud-amd64")
	set(&c.CPUModel, "max")
	set(&c.Machine, "q35")
	if c.MemMB == 0 {
		c.MemMB = 512
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	return c
}

// check tells what cannot be booted.
func (c Config) check() error {
	switch {
	case c.MemMB < 128:
		return fmt.Errorf("%d MiB of RAM: the guest needs 128", c.MemMB)
	case c.CPUs < 1 || c.CPUs > 64:
		return fmt.Errorf("%d CPUs", c.CPUs)
	case c.Root != "" && c.Root != "debian":
		return fmt.Errorf("root file system %q: the lab knows debian", c.Root)
	case c.Root != "" && c.MemMB < 1024:
		return fmt.Errorf("%d MiB of RAM: a Debian system needs 1024", c.MemMB)
	case c.MemPath != "" && c.RAM != RAMFile:
		return fmt.Errorf("a memory path goes with RAM in a file, not with %v RAM", c.RAM)
	case c.NUMA < 0 || c.NUMA > c.CPUs:
		return fmt.Errorf("%d NUMA nodes for %d CPUs", c.NUMA, c.CPUs)
	case strings.ContainsAny(c.Name, ",/ \n"):
		return fmt.Errorf("machine name %q", c.Name)
	}
	return nil
}

// commandLine returns the kernel's command line.
func (c Config) commandLine() string {
	// A kernel that is starved of CPU time while it tests its timer panics.
	words := []string{"console=ttyS0", "panic=0", "loglevel=4", "no_timer_check"}
	switch {
	case c.NoOracle:
		words = append(words, "umbra.oracle=none")
	case c.Serial:
		words = append(words, "umbra.oracle=ttyS1")
	}
	if c.Root != "" {
		words = append(words, "rdinit=/lib/systemd/systemd", "systemd.unit=umbra.target")
	}
	return strings.Join(append(words, c.Append...), " ")
}

// files are the paths a machine's QEMU is given.
type files struct {
	image, initrd        string
	ram                  string
	oracle, control, qmp string
}

// args returns QEMU's command line for c on the accelerator.
func (c Config) args(accel string, f files) []string {
	a := []string{
		"-no-user-config", "-nodefaults", "-display", "none",
		"-name", c.Name,
		"-accel", accel,
		"-cpu", c.cpuModel(accel),
		"-smp", fmt.Sprint(c.CPUs),
		"-m", fmt.Sprintf("%dM", c.MemMB),
		"-kernel", f.image, "-initrd", f.initrd,
		"-append", c.commandLine(),
		"-chardev", "file,id=console,path=/dev/stdout", "-serial", "chardev:console",
		"-chardev", "socket,id=control,server=on,wait=off,path=" + f.control,
		"-mon", "chardev=control,mode=control",
	}
	a = append(a, c.memoryArgs(f.ram)...)
	if c.QMP {
		a = append(a,
			"-chardev", "socket,id=qmp,server=on,wait=off,path="+f.qmp,
			"-mon", "chardev=qmp,mode=control")
	}
	if !c.NoOracle {
		a = append(a, "-chardev", "socket,id=oracle,server=on,wait=off,path="+f.oracle)
		if c.Serial {
			a = append(a, "-serial", "chardev:oracle")
		} else {
			a = append(a,
				"-device", "virtio-serial-pci,id=vser",
				"-device", "virtserialport,bus=vser.0,chardev=oracle,name=umbra.oracle")
		}
	}
	return append(a, c.ExtraArgs...)
}

// cpuModel returns QEMU's -cpu. QEMU 7.2's TCG leaves garbage in EFLAGS behind
// cmpxchg16b, the direction flag included, and string instructions then run
// backwards over the guest's memory: half of the boots of a 6.12 kernel, whose
// slab allocator uses that instruction, ended in a panic. Without the feature a
// kernel takes another path.
func (c Config) cpuModel(accel string) string {
	if accel != "tcg" || strings.Contains(c.CPUModel, "cx16") {
		return c.CPUModel
	}
	return c.CPUModel + ",cx16=off"
}

// memoryArgs returns the options that give the machine its RAM.
func (c Config) memoryArgs(path string) []string {
	if c.RAM == RAMStock && c.NUMA == 0 {
		return []string{"-machine", c.Machine}
	}
	object := func(i, mb int) string {
		s := fmt.Sprintf("id=ram%d,size=%dM", i, mb)
		switch c.RAM {
		case RAMFile:
			return "memory-backend-file," + s + ",share=on,mem-path=" + nodePath(path, i)
		case RAMMemfd:
			return "memory-backend-memfd," + s + ",share=on"
		}
		return "memory-backend-ram," + s
	}
	if c.NUMA == 0 {
		return []string{"-object", object(0, c.MemMB), "-machine", c.Machine + ",memory-backend=ram0"}
	}
	a := []string{"-machine", c.Machine}
	left := c.MemMB
	for i := range c.NUMA {
		mb := left / (c.NUMA - i)
		left -= mb
		node := fmt.Sprintf("node,nodeid=%d,memdev=ram%d", i, i)
		for cpu := i; cpu < c.CPUs; cpu += c.NUMA {
			node += fmt.Sprintf(",cpus=%d", cpu)
		}
		a = append(a, "-object", object(i, mb), "-numa", node)
	}
	return a
}

// nodePath returns the file of a NUMA node's RAM.
func nodePath(path string, node int) string {
	if node == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, node)
}
