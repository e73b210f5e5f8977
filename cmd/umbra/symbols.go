package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umbravm/umbra"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/ksym"
	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/table"
)

// symbolRow is a symbol as printed. Addresses are strings: JSON numbers lose their
// low bits in many readers.
type symbolRow struct {
	Address string  `json:"address"`
	Type    string  `json:"type"`
	Name    string  `json:"name"`
	Offset  *uint64 `json:"offset"` // of the address asked for, when one was
}

func symbolsCommand(a *app) *cobra.Command {
	var out outputFlags
	keys, err := table.Keys[symbolRow]()
	must(err)
	cmd := &cobra.Command{
		Use:   "symbols TARGET [NAME|ADDRESS]",
		Short: "Look up the kernel's symbols",
		Long: `symbols prints the kernel's symbol table, which is read out of the machine's
memory, as /proc/kallsyms has it; or the symbols of one name; or the symbol that
holds an address (0x… or 16 digits), and how far into it the address is.`,
		Example: `  umbra symbols web1 init_task
  umbra symbols web1 0xffffffff81000040
  umbra symbols web1 -o csv >System.map.csv`,
		GroupID:           groupMemory,
		Args:              targetArgs(0, 1),
		ValidArgsFunction: completeTarget,
	}
	out.register(cmd, keys)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opts := out.apply(a, table.Options{Default: []string{"address", "type", "name"}})
		if err := table.Check[symbolRow](opts); err != nil {
			return usagef(cmd, "%w", err)
		}
		return a.withView(cmd, args[0], func(_ *umbra.Machine, v *kernel.View) error {
			rows, err := findSymbols(v.Symbols(), strings.Join(args[1:], ""))
			if err != nil {
				return err
			}
			if len(rows) == 1 && rows[0].Offset != nil && len(opts.Columns) == 0 {
				opts.Default = []string{"address", "type", "name", "offset"}
			}
			return table.Write(a.stdout, rows, opts)
		})
	}
	return cmd
}

// findSymbols returns the symbols that what asks for: all for "".
func findSymbols(t *ksym.Table, what string) (rows []symbolRow, err error) {
	row := func(s ksym.Symbol) symbolRow {
		return symbolRow{Address: fmt.Sprintf("0x%016x", uint64(s.Addr)), Type: string(s.Type), Name: s.Name}
	}
	if what == "" {
		for s := range t.All() {
			rows = append(rows, row(s))
		}
		return rows, nil
	}
	hex, prefixed := strings.CutPrefix(strings.ToLower(what), "0x")
	// Logs and /proc/kallsyms write addresses as 16 digits and no 0x.
	if addr, err := strconv.ParseUint(hex, 16, 64); prefixed || err == nil && len(hex) == 16 {
		if err != nil {
			return nil, fmt.Errorf("address %q: not a 64-bit number in hexadecimal digits", what)
		}
		s, off, ok := t.Symbolize(mem.Virt(addr))
		if !ok {
			return nil, fmt.Errorf("address %#x: %w there", addr, kernel.ErrNoSymbol)
		}
		r := row(s)
		r.Offset = &off
		return []symbolRow{r}, nil
	}
	for _, s := range t.LookupAll(what) {
		rows = append(rows, row(s))
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("symbol %q: %w", what, kernel.ErrNoSymbol)
	}
	return rows, nil
}
