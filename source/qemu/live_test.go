package qemu

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umbravm/umbra/internal/qmp"
	"github.com/umbravm/umbra/mem"
)

// TestReadAgreesWithQEMU compares all kinds of RAM with what QEMU itself saves,
// ROM area and content written by firmware included.
func TestReadAgreesWithQEMU(t *testing.T) {
	for _, r := range rigs {
		t.Run(r.name, func(t *testing.T) {
			v := startVM(t, vmOptions{args: r.args(t), running: true})
			time.Sleep(300 * time.Millisecond) // let the firmware write something
			s := v.open(t)
			resume, err := s.Pause(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer resume()
			// The firmware may have switched the ROM area over since we attached.
			if err := s.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			last := s.Info().Layout[len(s.Info().Layout)-1]
			for _, e := range []mem.Extent{{Start: 0, Size: 640 << 10}, {Start: 0xe0000, Size: 0x40000}, {Start: last.End() - 65536, Size: 65536}} {
				compareWithQEMU(t, s, e)
			}
		})
	}
}

// compareWithQEMU reads e and, as far as it is RAM, compares it with pmemsave.
func compareWithQEMU(t *testing.T, s *Source, e mem.Extent) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "saved")
	args := map[string]any{"val": uint64(e.Start), "size": e.Size, "filename": file}
	if err := s.qmp.Execute(t.Context(), "pmemsave", args, nil); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for off := 0; off < len(want); off += mem.PageSize {
		at := e.Start + mem.Phys(off)
		buf := make([]byte, mem.PageSize)
		n, err := mem.Gather(t.Context(), s, at, buf)
		if _, ok := s.Info().Layout.Find(at); !ok {
			if !errors.Is(err, mem.ErrNotRAM) {
				t.Errorf("%v is not in the layout, yet read: %v", at, err)
			}
			continue
		}
		if err != nil || n != len(buf) || !bytes.Equal(buf, want[off:off+mem.PageSize]) {
			t.Errorf("%v: %d bytes, %v; or not what QEMU saves", at, n, err)
		}
		compared++
	}
	if e.Start != 0xe0000 && compared != len(want)/mem.PageSize {
		t.Errorf("%v: %d of %d pages are RAM", e.Start, compared, len(want)/mem.PageSize)
	}
}

// TestReadingDoesNotGrowRAM reads all of a sparse RAM file, holes included.
func TestReadingDoesNotGrowRAM(t *testing.T) {
	for _, share := range []string{"on", "off"} {
		t.Run("share="+share, func(t *testing.T) {
			file := ramFile(t)
			v := startVM(t, vmOptions{fill: []mem.Phys{mib, 100 * mib}, args: []string{"-m", "256", "-machine", "memory-backend=m",
				"-object", "memory-backend-file,id=m,size=256M,share=" + share + ",mem-path=" + file}})
			s := v.open(t)
			before := blocks(t, file)
			buf := make([]byte, mib)
			for _, e := range s.Info().Layout {
				for at := e.Start; at < e.End(); at += mib {
					if _, err := mem.Gather(t.Context(), s, at, buf[:min(mib, uint64(e.End()-at))]); err != nil {
						t.Fatal(err)
					}
				}
			}
			for at := mem.Phys(0); ; {
				e, ok := s.Data(at)
				if !ok {
					break
				}
				at = e.End()
			}
			if after := blocks(t, file); after != before {
				t.Errorf("the RAM file grew from %d to %d blocks", before, after)
			}
			if s.Info().Layout.Size() < 255*mib || before*512 > 64*mib {
				t.Errorf("%d MiB of RAM, %d blocks: the test reads no holes", s.Info().Layout.Size()/mib, before)
			}
		})
	}
}

func blocks(t *testing.T, file string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

func TestRegisters(t *testing.T) {
	v := startVM(t, vmOptions{args: []string{"-smp", "2"}})
	s := v.open(t)
	regs, err := s.Registers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// What the architecture prescribes after reset.
	if len(regs) != 2 || regs[0].RIP != 0xfff0 || regs[0].CR0 != 0x60000010 || regs[1].CPU != 1 || regs[0].CPL != 0 {
		t.Errorf("registers after reset: %+v", regs)
	}
}

// TestStubRegisters reads through the GDB stub while another client holds QMP; the
// machine runs before and after.
func TestStubRegisters(t *testing.T) {
	for _, dev := range []string{"unix:" + filepath.Join(t.TempDir(), "gdb") + ",server=on,wait=off", "tcp::" + freePort(t)} {
		network, _, _ := strings.Cut(dev, ":")
		t.Run(network, func(t *testing.T) { testStub(t, dev) })
	}
}

// freePort returns a TCP port nobody listens on at the moment.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func testStub(t *testing.T, dev string) {
	v := startVM(t, vmOptions{running: true, args: []string{"-smp", "2", "-gdb", dev}})
	c, err := qmp.Dial(t.Context(), v.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	state := func() (st status) {
		if err := c.Execute(t.Context(), "query-status", nil, &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	s := v.open(t)
	regs, err := s.Registers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(regs) != 2 || regs[0].CR0 == 0 {
		t.Errorf("registers %+v", regs)
	}
	if !state().Running {
		t.Error("the GDB stub left the machine stopped")
	}
	if err := c.Execute(t.Context(), "stop", nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Registers(t.Context()); !errors.Is(err, ErrNoRegisters) {
		t.Errorf("of a machine that may be paused: %v, want ErrNoRegisters", err)
	}
	if st := state(); st.Running || st.Status != "paused" {
		t.Errorf("a paused machine is %+v after asking for registers", st)
	}
}

// TestHotPlug plugs memory in while attached.
func TestHotPlug(t *testing.T) {
	v := startVM(t, vmOptions{args: []string{"-machine", "q35", "-m", "256,slots=2,maxmem=2G"}})
	s := v.open(t)
	before := s.Info().Layout.Size()
	for _, cmd := range []struct {
		name string
		args map[string]any
	}{
		{"object-add", map[string]any{"qom-type": "memory-backend-memfd", "id": "extra", "size": 128 * mib}},
		{"device_add", map[string]any{"driver": "pc-dimm", "id": "dimm0", "memdev": "extra"}},
	} {
		if err := s.qmp.Execute(t.Context(), cmd.name, cmd.args, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Info().Layout.Size() - before; got != 128*mib {
		t.Fatalf("plugged in 128 MiB, found %d MiB more", got/mib)
	}
	last := s.Info().Layout[len(s.Info().Layout)-1]
	compareWithQEMU(t, s, mem.Extent{Start: last.Start, Size: mib})
	if !strings.Contains(s.Info().Detail, "process memory and shared memfd") {
		t.Errorf("detail %q", s.Info().Detail)
	}
}

// TestSharedDeviceMemory: memory behind a PCI device is not RAM.
func TestSharedDeviceMemory(t *testing.T) {
	v := startVM(t, vmOptions{running: true, args: []string{"-m", "256", "-device", "ivshmem-plain,memdev=shm",
		"-object", "memory-backend-memfd,id=shm,size=1M"}})
	waitFor(t, "the firmware maps the device", func() bool { return strings.Contains(v.hmp(t, "info mtree -f"), ": shm") })
	s := v.open(t)
	if n := s.Info().Layout.Size(); n > 256*mib {
		t.Errorf("%#x bytes of RAM: %v", n, s.Info().Layout)
	}
}

// waitFor fails the test when what does not become true in 30 s.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("waited 30 s in vain: %s", what)
}

// TestGone: a machine that ends is gone for reads, registers and refresh, whether
// its RAM outlives it or not.
func TestGone(t *testing.T) {
	for _, r := range rigs[:4] {
		t.Run(r.name, func(t *testing.T) {
			v := startVM(t, vmOptions{args: r.args(t)})
			s := v.open(t)
			v.kill()
			buf := make([]byte, 64)
			if _, err := mem.Gather(t.Context(), s, mib, buf); !errors.Is(err, mem.ErrGone) {
				t.Errorf("read: %v", err)
			}
			if _, err := s.Registers(t.Context()); !errors.Is(err, mem.ErrGone) {
				t.Errorf("registers: %v", err)
			}
			if err := s.Refresh(t.Context()); !errors.Is(err, mem.ErrGone) {
				t.Errorf("refresh: %v", err)
			}
			if _, err := s.Pause(t.Context()); !errors.Is(err, mem.ErrGone) {
				t.Errorf("pause: %v", err)
			}
		})
	}
}

// TestGoneWhileReading kills a machine under a reader: reads are right until they
// fail, and they fail with mem.ErrGone.
func TestGoneWhileReading(t *testing.T) {
	for _, r := range rigs[:4] {
		t.Run(r.name, func(t *testing.T) {
			v := startVM(t, vmOptions{args: r.args(t), fill: r.fill})
			s := v.open(t)
			time.AfterFunc(20*time.Millisecond, func() { v.cmd.Process.Kill() })
			for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
				reads := make([]mem.Read, len(v.known))
				for i, c := range v.known {
					reads[i] = mem.Read{Addr: c.Addr, Buf: make([]byte, len(c.Data))}
				}
				if err := s.ReadPhys(t.Context(), reads); err != nil {
					if !errors.Is(err, mem.ErrGone) {
						t.Errorf("%v, want mem.ErrGone", err)
					}
					return
				}
				for i, r := range reads {
					if r.Err != nil || !bytes.Equal(r.Buf, v.known[i].Data) {
						t.Fatalf("%v: %v, or wrong bytes, from a call that succeeded", r.Addr, r.Err)
					}
				}
			}
			t.Error("reads still succeed 30 s after the end")
		})
	}
}

// TestTruncatedRAMFile: a RAM file that somebody cut short is an error, not zeros
// and not a crash.
func TestTruncatedRAMFile(t *testing.T) {
	file := ramFile(t)
	v := startVM(t, vmOptions{args: []string{"-m", "64", "-machine", "memory-backend=m",
		"-object", "memory-backend-file,id=m,size=64M,share=on,mem-path=" + file}})
	s := v.open(t)
	if err := os.Truncate(file, 32*mib); err != nil {
		t.Fatal(err)
	}
	n, err := mem.Gather(t.Context(), s, 32*mib-100, make([]byte, 200))
	var f *mem.Fault
	if n != 100 || !errors.As(err, &f) || f.Addr != 32*mib || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("across the new end: %d bytes, %v", n, err)
	}
}
