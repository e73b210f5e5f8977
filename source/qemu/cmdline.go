package qemu

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// config is what a QEMU command line says of a machine (qemu-options.hx).
type config struct {
	name, uuid  string
	machine     string            // machine type: "q35", "pc-i440fx-7.2", "" for the default
	machineOpts map[string]string // what follows the type: memory-backend, max-ram-below-4g, …
	accels      []string
	memory      uint64 // RAM at boot, in bytes
	slots       bool   // memory can be hot-plugged
	cpus        int    // 0 when the command line does not say it plainly
	backends    []memBackend
	numa        []string // ids of the backends of NUMA nodes, in order
	devices     []options
	qmp         []string // paths of QMP sockets
	qmpFDs      []int    // inherited descriptors QMP listens on (libvirt)
	gdb         string   // address of the GDB stub: "tcp:HOST:PORT", "unix:PATH"
	readConfig  bool     // part of the configuration is in a file
}

// memBackend is one -object memory-backend-….
type memBackend struct {
	kind, id, path string
	size           uint64 // bytes
	share          bool
}

// options is one option's value, "first,key=value,…" or JSON. The word without a
// key, if any, stands under "".
type options map[string]string

// defaultMemory is what a machine has without -m, in bytes (hw/i386/pc.c and most
// others: default_ram_size).
const defaultMemory = 128 << 20

// skipValue are options whose value can be anything and means nothing here.
var skipValue = map[string]bool{
	"append": true, "kernel": true, "initrd": true, "fw_cfg": true, "smbios": true, "drive": true,
	"D": true, "d": true, "trace": true, "incoming": true,
}

// parseArgs reads a QEMU command line without the program's name. It never fails:
// what it does not know is left out, and what depends on that must be verified.
func parseArgs(args []string) *config {
	c := &config{memory: defaultMemory, machineOpts: map[string]string{}}
	var chardevs = map[string]options{}
	var controls []string // chardevs with a QMP monitor
	for i := 0; i < len(args); i++ {
		name, ok := strings.CutPrefix(args[i], "-")
		if !ok {
			continue
		}
		name = strings.TrimPrefix(name, "-")
		if name == "s" {
			c.gdb = "tcp:127.0.0.1:1234"
			continue
		}
		if i+1 >= len(args) {
			break
		}
		value := args[i+1]
		switch name {
		case "chardev":
			o := parseOptions(value)
			chardevs[o["id"]] = o
		case "mon":
			if o := parseOptions(value); o["mode"] == "control" {
				controls = append(controls, o.first("chardev"))
			}
		case "qmp", "qmp-pretty":
			if id, ok := strings.CutPrefix(value, "chardev:"); ok {
				controls = append(controls, id)
			} else {
				c.addQMP(value)
			}
		default:
			if !skipValue[name] && !c.set(name, value) {
				continue
			}
		}
		i++
	}
	for _, id := range controls {
		o := chardevs[id]
		if o[""] != "socket" {
			continue
		}
		if fd, err := strconv.Atoi(o["fd"]); err == nil {
			c.qmpFDs = append(c.qmpFDs, fd)
		} else if o["path"] != "" {
			c.qmp = append(c.qmp, o["path"])
		}
	}
	return c
}

// set takes one option that has a value, and tells whether it knows it.
func (c *config) set(name, value string) bool {
	switch name {
	case "name":
		c.name = parseOptions(value).first("guest")
	case "uuid":
		c.uuid = value
	case "m":
		o := parseOptions(value)
		if n, err := parseSize(o.first("size")); err == nil {
			c.memory = n
		}
		c.slots = c.slots || o["slots"] != "" || o["maxmem"] != ""
	case "smp":
		c.cpus = parseCPUs(parseOptions(value))
	case "machine", "M":
		o := parseOptions(value)
		if t := o.first("type"); t != "" {
			c.machine = t
		}
		for k, v := range o {
			c.machineOpts[k] = v
		}
	case "accel":
		c.accels = append(c.accels, parseOptions(value).first("accel"))
	case "enable-kvm":
		c.accels = append(c.accels, "kvm")
		return false
	case "object":
		c.addObject(parseOptions(value))
	case "numa":
		if o := parseOptions(value); o.first("type") == "node" && o["memdev"] != "" {
			c.numa = append(c.numa, o["memdev"])
		}
	case "device":
		c.devices = append(c.devices, parseOptions(value))
	case "gdb":
		c.gdb = value
	case "readconfig":
		c.readConfig = true
	default:
		return false
	}
	return true
}

// addQMP takes the value of -qmp. A QMP on TCP is not used: who answers there
// cannot be told from the machine's own process.
func (c *config) addQMP(value string) {
	if path, ok := strings.CutPrefix(value, "unix:"); ok {
		c.qmp = append(c.qmp, parseOptions(path)[""])
	}
}

func (c *config) addObject(o options) {
	kind := o.first("qom-type")
	if !strings.HasPrefix(kind, "memory-backend-") {
		return
	}
	size, err := parseSize(o["size"])
	if err != nil {
		// A JSON value is in bytes and parsed as such; no size is no backend.
		return
	}
	share := o["share"] == "on" || o["share"] == "true" || o["share"] == "yes"
	if kind == "memory-backend-memfd" && o["share"] == "" {
		share = true
	}
	c.backends = append(c.backends, memBackend{kind: kind, id: o["id"], path: o["mem-path"], size: size, share: share})
}

// parseOptions reads "word,key=value,flag,…", in which a comma of a value is
// doubled, or a JSON object.
func parseOptions(s string) options {
	o := options{}
	if strings.HasPrefix(s, "{") {
		var fields map[string]any
		d := json.NewDecoder(strings.NewReader(s))
		d.UseNumber()
		if d.Decode(&fields) == nil {
			for k, v := range fields {
				o[k] = fmt.Sprint(v)
			}
			// In JSON a bare size is in bytes; in text it would be in MiB.
			if _, err := strconv.ParseUint(o["size"], 10, 64); err == nil {
				o["size"] += "B"
			}
		}
		return o
	}
	for i, part := range splitCommas(s) {
		k, v, ok := strings.Cut(part, "=")
		switch {
		case ok:
			o[k] = v
		case i == 0:
			o[""] = part
		default:
			o[part] = "on"
		}
	}
	return o
}

// first is the value of the option's implied key.
func (o options) first(key string) string {
	if v, ok := o[key]; ok {
		return v
	}
	return o[""]
}

func splitCommas(s string) []string {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			b.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			b.WriteByte(',')
			i++
		default:
			parts = append(parts, b.String())
			b.Reset()
		}
	}
	return append(parts, b.String())
}

// parseSize reads a size as QEMU does: a number with a suffix B, K, M, G, T, P or
// E, and MiB without one. A fraction is allowed.
func parseSize(s string) (uint64, error) {
	digits := strings.TrimRight(s, "bBkKmMgGtTpPeE")
	unit := uint64(1 << 20)
	if u := s[len(digits):]; len(u) == 1 {
		unit = 1 << (10 * strings.Index("BKMGTPE", strings.ToUpper(u)))
	} else if u != "" {
		return 0, fmt.Errorf("size %q: unknown unit", s)
	}
	if n, err := strconv.ParseUint(digits, 0, 64); err == nil {
		hi, lo := bits.Mul64(n, unit)
		if hi != 0 {
			return 0, fmt.Errorf("size %q: too large", s)
		}
		return lo, nil
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || f < 0 || f*float64(unit) >= 1<<63 || f != f {
		return 0, fmt.Errorf("size %q: not a size", s)
	}
	return uint64(f * float64(unit)), nil
}

// parseCPUs reads -smp: the count, or the product of the topology where the count
// is left out. It returns 0 when neither says it.
func parseCPUs(o options) int {
	if n, err := strconv.Atoi(o.first("cpus")); err == nil && n > 0 {
		return n
	}
	n := 1
	known := false
	for _, k := range []string{"drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"} {
		v, ok := o[k]
		if !ok {
			continue
		}
		m, err := strconv.Atoi(v)
		if err != nil || m <= 0 || m > 1<<16 || n > 1<<16 {
			return 0
		}
		n *= m
		known = true
	}
	if !known {
		return 0
	}
	return n
}
