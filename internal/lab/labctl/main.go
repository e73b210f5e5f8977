// Command labctl boots the lab's guests by hand.
//
//	labctl fetch [-kernel 6.1,7.2] [-flavour cloud-amd64]
//	labctl boot  [-kernel 6.1] [-mem 512] [-name X] …   until Ctrl-C
//	labctl ask   NAME COMMAND …                         ask a booted guest's oracle
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/umbravm/umbra/internal/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "labctl: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "fetch":
			return fetch(ctx, args[1:])
		case "boot":
			return boot(ctx, args[1:])
		case "ask":
			return ask(args[1:])
		}
	}
	return fmt.Errorf("usage: labctl fetch|boot|ask …; labctl boot -h lists its flags")
}

func fetch(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("labctl fetch", flag.ExitOnError)
	kernels := flags.String("kernel", strings.Join(lab.Kernels(), ","), "kernels, separated by commas")
	flavour := flags.String("flavour", "cloud-amd64", "cloud-amd64, amd64 or rt-amd64")
	flags.Parse(args)
	for _, version := range strings.Split(*kernels, ",") {
		k, err := lab.FetchKernel(ctx, version, *flavour)
		if err != nil {
			return err
		}
		fmt.Println(k.Release, k.Image)
	}
	return nil
}

func boot(ctx context.Context, args []string) error {
	var c lab.Config
	flags := flag.NewFlagSet("labctl boot", flag.ExitOnError)
	flags.StringVar(&c.Kernel, "kernel", "6.1", "one of "+strings.Join(lab.Kernels(), ", "))
	flags.StringVar(&c.Flavour, "flavour", "cloud-amd64", "cloud-amd64, amd64 or rt-amd64")
	flags.IntVar(&c.MemMB, "mem", 512, "RAM in MiB")
	flags.IntVar(&c.CPUs, "smp", 1, "CPUs")
	flags.StringVar(&c.CPUModel, "cpu", "max", "QEMU's CPU model")
	flags.StringVar(&c.Machine, "machine", "q35", "QEMU's machine type")
	flags.StringVar(&c.Name, "name", "", "the machine's name")
	flags.StringVar(&c.MemPath, "ram-file", "", "file for the RAM")
	flags.BoolVar(&c.KeepRAM, "keep-ram", false, "use the RAM file as it is, and keep it")
	flags.StringVar(&c.Root, "root", "", "debian for a Debian system")
	flags.IntVar(&c.NUMA, "numa", 0, "NUMA nodes")
	flags.BoolVar(&c.QMP, "qmp", true, "offer a QMP socket")
	flags.BoolVar(&c.Serial, "serial", false, "oracle on the second UART")
	flags.BoolVar(&c.NoOracle, "no-oracle", false, "no oracle")
	flags.StringVar(&c.Accel, "accel", "", "kvm or tcg")
	ram := flags.String("ram", "file", "file, stock or memfd")
	words := flags.String("append", "", "more words for the kernel's command line")
	flags.Parse(args)
	kinds := map[string]lab.RAMKind{"file": lab.RAMFile, "stock": lab.RAMStock, "memfd": lab.RAMMemfd}
	kind, ok := kinds[*ram]
	if !ok {
		return fmt.Errorf("-ram %s: file, stock or memfd", *ram)
	}
	c.RAM, c.Append, c.ExtraArgs = kind, strings.Fields(*words), flags.Args()

	g, err := lab.Boot(ctx, c)
	if err != nil {
		return err
	}
	defer g.Close()
	fmt.Printf("name %s\npid %d\nkernel %s\naccel %s\n", g.Name(), g.PID(), g.Kernel().Release, g.Accel())
	if p := g.QMPPath(); p != "" {
		fmt.Println("qmp", p)
	}
	if p := g.RAMPath(); p != "" {
		fmt.Println("ram", p)
	}
	return serve(ctx, g)
}
