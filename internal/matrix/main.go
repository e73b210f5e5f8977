// Command matrix runs the comparisons of package linux with the guests' own
// /proc on many machines, one after the other, and prints which agreed.
//
//	matrix [-run REGEXP] [MACHINE …]
//
// A MACHINE is what lab.ParseConfig reads; without any, all of machines() are
// taken. The exit status is 1 when one did not agree or did not boot.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/umbravm/umbra/internal/lab"
)

// machineLimit bounds the tests of one machine, its boot included.
const machineLimit = 15 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := flag.String("run", comparisons, "the tests to run, as go test takes them")
	flag.Parse()
	ok, err := matrix(ctx, *run, flag.Args())
	if err != nil {
		fmt.Fprintf(os.Stderr, "matrix: %v\n", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// matrix runs the tests on every machine and tells whether all agreed.
func matrix(ctx context.Context, run string, list []string) (bool, error) {
	if len(list) == 0 {
		list = machines()
	}
	for _, m := range list {
		if _, err := lab.ParseConfig(m); err != nil {
			return false, err
		}
	}
	dir, err := os.MkdirTemp("", "umbra-matrix-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "linux.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./linux")
	if out, err := build.CombinedOutput(); err != nil {
		return false, fmt.Errorf("build the tests: %w: %s", err, out)
	}
	var all []result
	for _, m := range list {
		fmt.Printf("=== %s\n", m)
		r, err := testMachine(ctx, program, run, m)
		if err != nil {
			return false, fmt.Errorf("%s: %w", m, err)
		}
		fmt.Print(r.failures())
		fmt.Println(r)
		all = append(all, r)
	}
	fmt.Print("\n", table(all))
	for _, r := range all {
		if !r.ok() {
			return false, nil
		}
	}
	return true, nil
}

// testMachine runs the tests in program on one machine.
func testMachine(ctx context.Context, program, run, machine string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, machineLimit+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.v", "-test.run", run, "-test.timeout", machineLimit.String())
	cmd.Dir = "linux"
	cmd.Env = append(os.Environ(), "UMBRA_TEST_GUESTS="+machine)
	begun := time.Now()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		return result{}, fmt.Errorf("run the tests: %w", errors.Join(err, ctx.Err()))
	}
	r := parse(string(out))
	r.machine, r.failed, r.took = machine, err != nil, time.Since(begun)
	return r, nil
}
