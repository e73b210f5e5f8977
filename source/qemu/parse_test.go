package qemu

import (
	"bufio"
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/umbravm/umbra/mem"
)

const longMode = `
CPU#0
RAX=ffffffff81e3a1c0 RBX=ffffffff8320a940 RCX=0000000000000001 RDX=4000000000000000
RSI=0000000000000083 RDI=00000000000135a4 RBP=0000000000000000 RSP=ffffffff83203e90
RIP=ffffffff81e3a1cb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 ffffffff 00000000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
FS =0000 0000000000000000 ffffffff 00000000
GS =0000 ffff88801f200000 ffffffff 00000000
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007f2c3c1f5000 CR3=000000000a2c4000 CR4=00750ef0
EFER=0000000000000d01
CCS=0000000000000044 CCD=0000000000000000 CCO=LOGICB  
CPU#1
RIP=00007f2c3c1f5123 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0
RBP=0000000000000000 RSP=00007ffe3203e900
GS =0000 0000000000000000 ffffffff 00000000
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=0 CR3=000000000a2c6000 CR4=00750ef0
EFER=0000000000000d01
`

func TestParseRegisters(t *testing.T) {
	regs, err := parseRegisters(strings.ReplaceAll(longMode, "\n", "\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(regs) != 2 || regs[1].CPU != 1 || regs[1].CPL != 3 || regs[1].RSP != 0x7ffe3203e900 {
		t.Errorf("%+v", regs)
	}
	r := regs[0]
	if r.RIP != 0xffffffff81e3a1cb || r.RSP != 0xffffffff83203e90 || r.CR0 != 0x80050033 || r.CR3 != 0xa2c4000 ||
		r.CR4 != 0x750ef0 || r.EFER != 0xd01 || r.GSBase != 0xffff88801f200000 || r.IDTBase != 0xfffffe0000000000 {
		t.Errorf("%+v", r)
	}
	for _, bad := range []string{"", "CPU#0\n", "CPU#1\n" + longMode, strings.Replace(longMode, "CR3=", "CR9=", 1),
		strings.Replace(longMode, "CR3=0", "CR3=x", 1), strings.Replace(longMode, "CPL=0", "CPL=4", 1)} {
		if regs, err := parseRegisters(bad); err == nil {
			t.Errorf("%.40q: %+v", bad, regs)
		}
	}
}

func TestParseArgs(t *testing.T) {
	// As libvirt writes it, shortened.
	line := `-name|guest=web,,1,debug-threads=on|-S|-machine|pc-q35-7.2,usb=off,memory-backend=pc.ram|-accel|kvm|-m|size=2097152k|` +
		`-object|{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"size":2147483648}|-smp|4,sockets=4,cores=1,threads=1|` +
		`-uuid|c7a5fdbd-edaf-9455-926a-d65c16db1809|-no-user-config|-chardev|socket,id=charmonitor,fd=26,server=on,wait=off|` +
		`-mon|chardev=charmonitor,id=monitor,mode=control|-append|-s -qmp unix:/evil|-device|{"driver":"virtio-net-pci","id":"net0"}`
	c := parseArgs(strings.Split(line, "|"))
	want := []memBackend{{kind: "memory-backend-memfd", id: "pc.ram", size: 2 << 30, share: true}}
	if c.name != "web,1" || c.machine != "pc-q35-7.2" || c.machineOpts["memory-backend"] != "pc.ram" || c.memory != 2<<30 ||
		c.cpus != 4 || !reflect.DeepEqual(c.backends, want) || !reflect.DeepEqual(c.qmpFDs, []int{26}) || c.gdb != "" || len(c.qmp) != 0 ||
		c.uuid != "c7a5fdbd-edaf-9455-926a-d65c16db1809" || len(c.devices) != 1 || len(c.accels) != 1 {
		t.Errorf("%+v", c)
	}
	c = parseArgs([]string{"--m", "1.5G", "-smp", "sockets=2,cores=3", "-enable-kvm", "-s", "-chardev", "socket,id=q,path=/run/q,server=on",
		"-mon", "q,mode=control", "-qmp", "unix:/tmp/a,,b,server=on,wait=off", "-qmp", "tcp:localhost:4444,server=on", "-numa", "node,memdev=a", "-name", "plain"})
	if c.memory != 3<<29 || c.cpus != 6 || c.gdb == "" || c.name != "plain" || !reflect.DeepEqual(c.qmp, []string{"/tmp/a,b", "/run/q"}) ||
		!reflect.DeepEqual(c.numa, []string{"a"}) || !reflect.DeepEqual(c.accels, []string{"kvm"}) {
		t.Errorf("%+v", c)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{"512": 512 << 20, "512M": 512 << 20, "3G": 3 << 30, "0x10k": 16 << 10, "1.5g": 3 << 29, "7B": 7} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "G", "1GG", "-1", "99999999999E", "NaN", "x", "1e30"} {
		if n, err := parseSize(s); err == nil {
			t.Errorf("%q: %d", s, n)
		}
	}
}

func TestParseFlatView(t *testing.T) {
	text := "FlatView #0\r\n AS \"cpu-smm-0\", root: memory\r\n Root memory region: memory\r\n" +
		"  0000000000000000-ffffffffffffffff (prio 0, ram): smm\r\n\r\n" +
		"FlatView #1\r\n AS \"memory\", root: system\r\n AS \"cpu-memory-0\", root: system\r\n Root memory region: system\r\n" +
		"  0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM\r\n" +
		"  00000000000c0000-00000000000dffff (prio 1, rom): pc.ram @00000000000c0000 KVM\r\n" +
		"  00000000fd000000-00000000fdffffff (prio 1, ram): 0000:00:02.0/vga.vram\r\n" +
		"  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi\r\n" +
		"  0000000100000000-000000013fffffff (prio 0, ram): /objects/my ram @00000000c0000000\r\n\r\n" +
		"FlatView #2\r\n AS \"I/O\", root: io\r\n  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r\n"
	got, err := parseFlatView(text)
	want := []flatRange{
		{mem.Extent{Start: 0, Size: 0xc0000}, "ram", "pc.ram", 0},
		{mem.Extent{Start: 0xc0000, Size: 0x20000}, "rom", "pc.ram", 0xc0000},
		{mem.Extent{Start: 0xfd000000, Size: 0x1000000}, "ram", "0000:00:02.0/vga.vram", 0},
		{mem.Extent{Start: 0xfee00000, Size: 0x100000}, "i/o", "apic-msi", 0},
		{mem.Extent{Start: 4 << 30, Size: 1 << 30}, "ram", "/objects/my ram", 0xc0000000},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzRegisters(f *testing.F) {
	f.Add(longMode)
	f.Fuzz(func(t *testing.T, text string) {
		regs, err := parseRegisters(text)
		if (regs == nil) == (err == nil) || len(regs) > maxCPUs {
			t.Fatalf("%d CPUs and error %v", len(regs), err)
		}
	})
}

func FuzzFlatView(f *testing.F) {
	f.Add("FlatView #1\n AS \"memory\", root: system\n  0000000000000000-00000000000bffff (prio 0, ram): pc.ram @00000000c0000000 KVM\n")
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := parseFlatView(text)
		if (ranges == nil) == (err == nil) {
			t.Fatalf("%d ranges and error %v", len(ranges), err)
		}
		for i, r := range ranges {
			if r.Size == 0 || i > 0 && r.Start <= ranges[i-1].Start {
				t.Fatalf("range %d is %+v", i, r)
			}
		}
	})
}

func FuzzMappings(f *testing.F) {
	f.Add("7fa75ffff000-7fa81ffff000 rw-s 00000000 00:01 27                         /memfd:memory-backend-memfd (deleted)\n" +
		"7fa81ffff000-7fa820000000 ---p 00000000 00:00 0 \n")
	f.Fuzz(func(t *testing.T, text string) {
		ms, err := readMappings(strings.NewReader(text))
		if (ms == nil) == (err == nil) {
			t.Fatalf("%d mappings and error %v", len(ms), err)
		}
		if len(coalesce(ms)) > len(ms) {
			t.Fatal("joining made more")
		}
	})
}

func FuzzPacket(f *testing.F) {
	f.Add([]byte("+$T02thread:01;#04$OK#9a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := readPacket(bufio.NewReader(bytes.NewReader(data)))
		if err != nil && p != "" || len(p) > maxPacket {
			t.Fatalf("%d bytes and error %v", len(p), err)
		}
	})
}

// FuzzArgs: a command line is never an error, whatever it says.
func FuzzArgs(f *testing.F) {
	f.Add("-m\x00512M\x00-object\x00{\"qom-type\":\"memory-backend-ram\",\"size\":1}\x00-smp\x00cores=3,threads=2")
	f.Fuzz(func(t *testing.T, line string) {
		c := parseArgs(strings.Split(line, "\x00"))
		if c.cpus < 0 || len(c.backends) > len(line) {
			t.Fatalf("%+v", c)
		}
		if low, err := c.lowMemory(); err == nil && (low > c.memory || low > highMem) {
			t.Fatalf("%#x of %#x bytes are low", low, c.memory)
		}
		for _, b := range place([]hostRun{{0, min(c.memory, maxDerived)}}, min(c.memory, highMem)) {
			if b.Size == 0 {
				t.Fatal("empty block")
			}
		}
	})
}
