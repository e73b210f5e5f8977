package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// helperEnv makes this test binary do one thing in a process of its own: see
// helper.
const helperEnv = "UMBRA_QEMU_TEST"

func TestMain(m *testing.M) {
	RunWatchdogIfAsked()
	if what := os.Getenv(helperEnv); what != "" {
		if err := helper(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper does "open TARGET", "list" or "pause TARGET".
func helper(what string) error {
	ctx := context.Background()
	verb, target, _ := strings.Cut(what, " ")
	switch verb {
	case "open":
		s, err := Open(ctx, target)
		if err == nil {
			return s.Close()
		}
		var te *TargetError
		if errors.As(err, &te) {
			fmt.Println(te.HintLine())
		}
		fmt.Println(err)
		return nil
	case "list":
		ms, err := List(ctx)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(ms)
	case "pause": // and wait to be killed
		s, err := Open(ctx, target)
		if err != nil {
			return err
		}
		if _, err := s.Pause(ctx); err != nil {
			return err
		}
		fmt.Println("paused")
		time.Sleep(time.Minute)
	}
	return fmt.Errorf("nothing more to do for %q", what)
}
