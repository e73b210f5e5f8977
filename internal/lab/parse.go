package lab

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ParseConfig reads a machine's description: words separated by slashes, each
// but the first optional.
//
//	KERNEL/FLAVOUR/smp=N/mem=MIB/cpu=MODEL/machine=TYPE/ram=file|stock|memfd/numa=N/root=debian/qmp/append=WORD
//
// KERNEL is what Config.Kernel takes; append can be given several times.
func ParseConfig(text string) (Config, error) {
	words := strings.Split(text, "/")
	c := Config{Kernel: words[0]}
	if _, err := parseOrigin(c.Kernel); err != nil {
		return Config{}, fmt.Errorf("machine %q: %w", text, err)
	}
	for _, word := range words[1:] {
		if err := c.set(word); err != nil {
			return Config{}, fmt.Errorf("machine %q: %w", text, err)
		}
	}
	if err := c.withDefaults().check(); err != nil {
		return Config{}, fmt.Errorf("machine %q: %w", text, err)
	}
	return c, nil
}

// set applies one word of a description.
func (c *Config) set(word string) (err error) {
	key, value, _ := strings.Cut(word, "=")
	switch key {
	case "smp":
		c.CPUs, err = strconv.Atoi(value)
	case "mem":
		c.MemMB, err = strconv.Atoi(value)
	case "numa":
		c.NUMA, err = strconv.Atoi(value)
	case "cpu":
		c.CPUModel = value
	case "machine":
		c.Machine = value
	case "root":
		c.Root = value
	case "append":
		c.Append = append(c.Append, value)
	case "qmp":
		c.QMP = true
	case "ram":
		c.RAM, err = ParseRAMKind(value)
	default:
		if !slices.Contains(flavours, word) {
			return fmt.Errorf("word %q is neither an option nor a kernel flavour", word)
		}
		c.Flavour = word
	}
	if err != nil {
		return fmt.Errorf("%s: %w", word, err)
	}
	return nil
}

// ParseRAMKind reads what RAMKind's String prints.
func ParseRAMKind(text string) (RAMKind, error) {
	for _, k := range []RAMKind{RAMFile, RAMStock, RAMMemfd} {
		if text == k.String() {
			return k, nil
		}
	}
	return 0, fmt.Errorf("kind of RAM %q: file, stock or memfd", text)
}
