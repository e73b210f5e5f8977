package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/linux"
	"github.com/umbravm/umbra/mem"
)

// readFlags are those of umbra read.
type readFlags struct {
	pid    int
	phys   bool
	format string
}

func readCommand(a *app) *cobra.Command {
	var f readFlags
	cmd := &cobra.Command{
		Use:   "read TARGET ADDRESS LENGTH",
		Short: "Read a machine's memory",
		Long: `read prints LENGTH bytes from ADDRESS on: of the kernel's virtual memory, of a
process's with --pid, or of the machine's physical memory with --phys.

ADDRESS is a number, or, in the kernel, an expression as print takes it: a pointer's
value or else the object's own address. LENGTH may end in K, M or G. What cannot be
read ends the output with an error; nothing is filled in.`,
		Example: `  umbra read web1 linux_banner 128
  umbra read web1 0x7ffd1c2e8000 4K --pid 412 -o raw >stack
  umbra read web1 0x1000 256 --phys`,
		GroupID:           groupMemory,
		Args:              targetArgs(2, 2),
		ValidArgsFunction: completeTarget,
	}
	cmd.Flags().IntVar(&f.pid, "pid", 0, "read this process's memory")
	cmd.Flags().BoolVar(&f.phys, "phys", false, "read physical memory")
	cmd.Flags().StringVarP(&f.format, "output", "o", "hex", "hex or raw")
	must(cmd.RegisterFlagCompletionFunc("output",
		cobra.FixedCompletions([]string{"hex", "raw"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		length, err := parseLength(args[2])
		if err != nil {
			return usagef(cmd, "%w", err)
		}
		if f.pid < 1 && cmd.Flags().Changed("pid") {
			return usagef(cmd, "--pid %d: process ids begin at 1", f.pid)
		}
		if f.phys && f.pid != 0 {
			return usagef(cmd, "--pid and --phys are two different memories")
		}
		if f.format != "hex" && f.format != "raw" {
			return usagef(cmd, "output format %q: one of hex, raw", f.format)
		}
		if f.format == "raw" && a.stdoutTTY {
			return usagef(cmd, "raw bytes are not for a terminal: send them to a file or a program")
		}
		if f.phys {
			return a.readPhysical(cmd, args[0], args[1], length, f.format)
		}
		return a.withView(cmd, args[0], func(_ *umbra.Machine, v *kernel.View) error {
			read, start, err := virtualReader(v, args[1], f.pid)
			if err != nil {
				return err
			}
			return a.copyMemory(read, start, length, f.format)
		})
	}
	return cmd
}

// reader fills buf from an address on, or tells how much it filled and why not all.
type reader func(addr uint64, buf []byte) (int, error)

// readPhysical needs no kernel.
func (a *app) readPhysical(cmd *cobra.Command, target, address string, length uint64, format string) error {
	start, err := strconv.ParseUint(address, 0, 64)
	if err != nil {
		return usagef(cmd, "address %q: with --phys it is a number", address)
	}
	src, err := a.open(cmd, target)
	if err != nil {
		return err
	}
	err = a.copyMemory(func(addr uint64, buf []byte) (int, error) {
		return mem.Gather(cmd.Context(), src, mem.Phys(addr), buf)
	}, start, length, format)
	return errors.Join(err, src.Close())
}

// virtualReader reads the kernel's memory, or a process's.
func virtualReader(v *kernel.View, address string, pid int) (reader, uint64, error) {
	space := v.Space()
	if pid != 0 {
		var err error
		if space, err = linux.Memory(v, pid); err != nil {
			return nil, 0, err
		}
	}
	read := func(addr uint64, buf []byte) (int, error) { return space.Read(mem.Virt(addr), buf) }
	if start, err := strconv.ParseUint(address, 0, 64); err == nil {
		return read, start, nil
	}
	if pid != 0 {
		return nil, 0, fmt.Errorf("address %q: in a process it is a number", address)
	}
	start, err := v.Address(address)
	return read, uint64(start), err
}

// copyMemory prints memory a chunk at a time.
func (a *app) copyMemory(read reader, start, length uint64, format string) (err error) {
	if start+length < start {
		return fmt.Errorf("%#x bytes from %#x on run past the address space", length, start)
	}
	out := bufio.NewWriterSize(a.stdout, 1<<16)
	defer func() { err = errors.Join(err, out.Flush()) }()
	buf := make([]byte, 1<<16)
	for done := uint64(0); done < length; {
		chunk := buf[:min(uint64(len(buf)), length-done)]
		n, readErr := read(start+done, chunk)
		if format == "raw" {
			_, err = out.Write(chunk[:n])
		} else {
			err = hexDump(out, start+done, chunk[:n])
		}
		if err != nil {
			return err
		}
		done += uint64(n)
		if readErr != nil {
			return fmt.Errorf("read %d bytes of %d: %w", done, length, readErr)
		}
	}
	return nil
}

// hexDump prints 16 bytes to a line, with what of them is ASCII.
func hexDump(w io.Writer, addr uint64, data []byte) error {
	for len(data) > 0 {
		line := data[:min(16, len(data))]
		data = data[len(line):]
		var hex, text strings.Builder
		for i := range 16 {
			if i == 8 {
				hex.WriteByte(' ')
			}
			if i >= len(line) {
				hex.WriteString("   ")
				continue
			}
			fmt.Fprintf(&hex, "%02x ", line[i])
			if c := line[i]; c >= ' ' && c < 0x7f {
				text.WriteByte(c)
			} else {
				text.WriteByte('.')
			}
		}
		if _, err := fmt.Fprintf(w, "%016x  %s |%s|\n", addr, hex.String(), text.String()); err != nil {
			return err
		}
		addr += 16
	}
	return nil
}

// parseLength reads a number of bytes, with K, M or G for powers of 1024.
func parseLength(s string) (uint64, error) {
	digits, shift := s, 0
	if i := strings.IndexAny(s, "KMGkmg"); i > 0 && i == len(s)-1 {
		digits, shift = s[:i], 10*(1+strings.IndexByte("KMG", s[i]&^0x20))
	}
	n, err := strconv.ParseUint(digits, 0, 64)
	if err != nil || n == 0 || n<<shift>>shift != n {
		return 0, fmt.Errorf("length %q is no number of bytes, such as 256, 0x100 or 4K", s)
	}
	return n << shift, nil
}
