package linux

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"time"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// Info is what is known of a machine and of how it was reached. What the machine
// has no value for is nil.
type Info struct {
	Name       string     `json:"name"`
	Source     string     `json:"source"` // "qemu", and how memory is reached
	Hostname   *string    `json:"hostname"`
	Release    *string    `json:"release"`
	Banner     string     `json:"banner"`
	BuildID    *string    `json:"build_id"` // the kernel's own word, in hexadecimal
	Arch       *string    `json:"arch"`
	BootID     *string    `json:"boot_id"` // nil as long as nothing in the machine asked for it
	BootTime   *time.Time `json:"boot_time"`
	Uptime     *float64   `json:"uptime_seconds"`
	CPUs       *int       `json:"cpus"`         // online
	Memory     uint64     `json:"memory_bytes"` // RAM the machine has
	KASLR      *uint64    `json:"kaslr_offset"` // bytes, as the kernel notes it for dump tools
	Attach     AttachInfo `json:"attach"`
	BTFHash    *string    `json:"btf_sha256"` // of the tables as they lay in memory; nil when supplied
	SymbolHash *string    `json:"kallsyms_sha256"`
	Moved      bool       `json:"moved"`
	Errors     []string   `json:"errors"`
}

// AttachInfo is how the kernel was found and what that cost.
type AttachInfo struct {
	Method       string  `json:"method"`
	Milliseconds float64 `json:"milliseconds"`
	PagesRead    uint64  `json:"pages_read"`
	Cached       bool    `json:"cached"` // types came from the cache
}

// infoLayout is include/linux/utsname.h and cpumask_types.h.
type infoLayout struct {
	Release  btf.Field `btf:"uts_namespace.name.release"`
	Machine  btf.Field `btf:"uts_namespace.name.machine"`
	Nodename btf.Field `btf:"uts_namespace.name.nodename"`
	CPUMask  btf.Field `btf:"cpumask"`
}

// ReadInfo tells what machine this is.
func ReadInfo(v *kernel.View) (Info, error) {
	l, err := kernel.Layout[infoLayout](v.Kernel)
	if err != nil {
		return Info{}, err
	}
	var info Info
	err = v.Each(1, func(_ int, w *kernel.Walk) { info = readInfo(w, l) }, func(int) { info.Moved = true })
	if err != nil {
		return info, err
	}
	if info.KASLR, err = kaslrOffset(v); err != nil {
		info.Errors = append(info.Errors, "kaslr_offset: "+err.Error())
	}
	return info, v.Snapshot().Err()
}

// kaslrOffset is KERNELOFFSET of the kernel's note for dump tools (arch/x86/kernel/
// vmcore_info_64.c), nil for a kernel without it.
func kaslrOffset(v *kernel.View) (*uint64, error) {
	text, err := v.VMCoreInfo()
	if errors.Is(err, kernel.ErrNoSymbol) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	note, err := kernel.ParseVMCoreInfo(text)
	if err != nil {
		return nil, err
	}
	value, ok := note["KERNELOFFSET"]
	if !ok {
		return nil, nil
	}
	n, err := strconv.ParseUint(value, 16, 64)
	if err != nil {
		return nil, err
	}
	return &n, nil
}

func readInfo(w *kernel.Walk, l *infoLayout) Info {
	k := w.View().Kernel
	src, at := k.Source().Info(), k.Attached()
	info := Info{
		Name: src.Name, Source: src.Kind, Banner: k.Banner(), Memory: src.Layout.Size(),
		Attach: AttachInfo{Method: at.Method, Milliseconds: float64(at.Duration.Microseconds()) / 1e3,
			PagesRead: (at.Read + mem.PageSize - 1) / mem.PageSize, Cached: at.Cached},
		Errors: []string{},
	}
	if src.Detail != "" {
		info.Source += ": " + src.Detail
	}
	if d, ok := k.TypesDigest(); ok {
		s := hex.EncodeToString(d[:])
		info.BTFHash = &s
	}
	if d, ok := k.SymbolsDigest(); ok {
		s := hex.EncodeToString(d[:])
		info.SymbolHash = &s
	}

	try := func(part string, f func()) {
		if s := message(part, w.Try(f)); s != "" {
			info.Errors = append(info.Errors, s)
		}
	}
	try("release", func() { info.Release, info.Arch, info.Hostname = unames(w, l) })
	try("build_id", func() { info.BuildID = buildID(w) })
	try("boot_id", func() { info.BootID = bootID(w) })
	try("cpus", func() { info.CPUs = onlineCPUs(w, l) })
	try("boot_time", func() {
		c, err := ReadClock(w)
		if err != nil {
			w.Fail(err)
			return
		}
		up := c.Uptime.Seconds()
		info.BootTime, info.Uptime = &c.Boot, &up
	})
	return info
}

// symbol returns a symbol's address; without it the walk fails.
func symbol(w *kernel.Walk, name string) mem.Virt {
	a, err := w.View().Symbol(name)
	if err != nil {
		w.Fail(err)
	}
	return a
}

// unames returns init_uts_ns's names.
func unames(w *kernel.Walk, l *infoLayout) (release, machine, node *string) {
	ns := symbol(w, "init_uts_ns")
	r, m, n := w.Text(ns, l.Release), w.Text(ns, l.Machine), w.Text(ns, l.Nodename)
	if !w.OK() {
		return nil, nil, nil
	}
	return &r, &m, &n
}

// onlineCPUs counts the bits of __cpu_online_mask (kernel/cpu.c).
func onlineCPUs(w *kernel.Walk, l *infoLayout) *int {
	n := 0
	for _, b := range w.Bytes(symbol(w, "__cpu_online_mask"), uint64(l.CPUMask.Size)) {
		n += bits.OnesCount8(b)
	}
	if w.OK() && n == 0 {
		w.Failf("no CPU is online")
	}
	if !w.OK() {
		return nil
	}
	return &n
}

// bootID returns sysctl_bootid (drivers/char/random.c) as /proc/sys/kernel/random/boot_id
// writes it. The kernel makes it when it is first read, and it is zero until then.
func bootID(w *kernel.Walk) *string {
	b := w.Bytes(symbol(w, "sysctl_bootid"), 16)
	if !w.OK() || [16]byte(b) == [16]byte{} {
		return nil
	}
	s := fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	return &s
}

// maxNotes bounds the kernel's notes, in bytes.
const maxNotes = 64 << 10

// buildID returns the build id in the kernel's notes, those of /sys/kernel/notes.
func buildID(w *kernel.Walk) *string {
	start, stop := symbol(w, "__start_notes"), symbol(w, "__stop_notes")
	if w.OK() && (stop < start || stop-start > maxNotes) {
		w.Failf("notes from %v to %v: %w", start, stop, kernel.ErrTooLong)
	}
	if !w.OK() {
		return nil
	}
	id, err := noteBuildID(pagewise(w, start, uint64(stop-start)))
	if !w.OK() {
		return nil
	}
	if err != nil {
		w.Fail(err)
		return nil
	}
	s := hex.EncodeToString(id)
	return &s
}

var errNoBuildID = errors.New("the notes hold no build id")

// noteBuildID finds the note NT_GNU_BUILD_ID among ELF notes: two sizes and a type
// of 4 bytes each, then name and content, each padded to 4 bytes.
func noteBuildID(notes []byte) ([]byte, error) {
	const gnu, buildIDType, maxID = "GNU\x00", 3, 64
	pad := func(n uint64) uint64 { return (n + 3) &^ 3 }
	for len(notes) >= 12 {
		le := binary.LittleEndian
		nameLen, descLen, kind := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
		notes = notes[12:]
		if pad(nameLen) > uint64(len(notes)) || descLen > uint64(len(notes))-pad(nameLen) {
			return nil, fmt.Errorf("a note of %d and %d bytes runs past the end", nameLen, descLen)
		}
		name, desc := notes[:nameLen], notes[pad(nameLen):pad(nameLen)+descLen]
		if string(name) == gnu && kind == buildIDType {
			if descLen == 0 || descLen > maxID {
				return nil, fmt.Errorf("build id of %d bytes: %w", descLen, kernel.ErrTooLong)
			}
			return desc, nil
		}
		notes = notes[min(pad(nameLen)+pad(descLen), uint64(len(notes))):]
	}
	return nil, errNoBuildID
}
