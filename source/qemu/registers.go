package qemu

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/umbravm/umbra/source"
)

const (
	// maxRegisterText bounds the text parsed, in bytes; a CPU takes some 5 KB.
	maxRegisterText = 64 << 20

	maxCPUs = 4096
)

// Registers reads the registers of all CPUs through QMP or, where there is none,
// through the GDB stub. It fails with ErrNoRegisters when the machine has neither.
func (s *Source) Registers(ctx context.Context) ([]source.Registers, error) {
	if s.p == nil {
		return nil, errClosed
	}
	var text string
	var err error
	switch {
	case s.qmp != nil:
		text, err = s.qmp.HMP(ctx, "info registers -a")
	case s.cfg.gdb != "":
		text, err = s.stubRegisters(ctx)
	default:
		return nil, fmt.Errorf("%w: %w", ErrNoRegisters, s.qmpErr)
	}
	if err != nil {
		return nil, s.p.explain(err)
	}
	return parseRegisters(text)
}

// parseRegisters reads the output of the monitor command "info registers -a" for
// x86 CPUs (target/i386/cpu-dump.c, x86_cpu_dump_state). Registers of a CPU in
// 32-bit mode have their upper halves zero.
func parseRegisters(text string) ([]source.Registers, error) {
	if len(text) > maxRegisterText {
		return nil, fmt.Errorf("registers: %d bytes of text", len(text))
	}
	var all []source.Registers
	for cpu := range strings.SplitSeq(text, "CPU#") {
		number, body, ok := strings.Cut(cpu, "\n")
		if !ok || strings.TrimSpace(number) == "" {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(number))
		if err != nil || n != len(all) || n >= maxCPUs {
			return nil, fmt.Errorf("registers: unexpected CPU number %.20q", number)
		}
		r, err := parseCPU(body)
		if err != nil {
			return nil, fmt.Errorf("registers of CPU %d: %w", n, err)
		}
		r.CPU = n
		all = append(all, r)
	}
	if len(all) == 0 {
		return nil, errors.New("registers: QEMU names no CPU")
	}
	return all, nil
}

// parseCPU reads one CPU's text: NAME=HEX words, and lines for segment registers
// and descriptor tables.
func parseCPU(text string) (source.Registers, error) {
	var r source.Registers
	var cpl uint64
	words := []struct {
		dst   *uint64
		names [2]string
		found bool
	}{
		{&r.RIP, [2]string{"RIP=", "EIP="}, false}, {&r.RSP, [2]string{"RSP=", "ESP="}, false},
		{&r.CR0, [2]string{"CR0="}, false}, {&r.CR3, [2]string{"CR3="}, false}, {&r.CR4, [2]string{"CR4="}, false},
		{&r.EFER, [2]string{"EFER="}, false}, {&cpl, [2]string{"CPL="}, false},
		{&r.GSBase, [2]string{"GS ="}, false}, {&r.IDTBase, [2]string{"IDT="}, false},
	}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		for i := range words {
			w := &words[i]
			var value string
			switch w.names[0] {
			case "GS =": // GS =SELECTOR BASE LIMIT FLAGS
				if !strings.HasPrefix(line, "GS =") || len(fields) < 3 {
					continue
				}
				value = fields[2]
			case "IDT=": // IDT=     BASE LIMIT
				if !strings.HasPrefix(line, "IDT=") || len(fields) < 2 {
					continue
				}
				value = fields[1]
			default:
				value = findWord(fields, w.names)
			}
			if value == "" || w.found {
				continue
			}
			v, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				return r, fmt.Errorf("%s%.20q is not a number", w.names[0], value)
			}
			*w.dst, w.found = v, true
		}
	}
	for _, w := range words {
		if !w.found {
			return r, fmt.Errorf("no %s in QEMU's output: not an x86-64 machine?", strings.Trim(w.names[0], " ="))
		}
	}
	if cpl > 3 {
		return r, fmt.Errorf("CPL %d", cpl)
	}
	r.CPL = int(cpl)
	return r, nil
}

func findWord(fields []string, names [2]string) string {
	for _, f := range fields {
		for _, n := range names {
			if v, ok := strings.CutPrefix(f, n); ok && n != "" {
				return v
			}
		}
	}
	return ""
}
