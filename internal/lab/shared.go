package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
)

// sharedGuest is a machine that several tests use.
type sharedGuest struct {
	once  sync.Once
	guest *Guest
	err   error
}

var (
	sharedMu sync.Mutex
	shared   = map[string]*sharedGuest{}
)

// Shared returns a running guest with this configuration, which all tests of the
// process that ask for the same one share, so that it is booted once. The test
// fails when it cannot be booted. A test that stops the guest, or changes what
// others look at, boots its own. The package's TestMain must be Main.
func Shared(t testing.TB, c Config) *Guest {
	t.Helper()
	c = c.withDefaults()
	key := fmt.Sprintf("%+v", c)
	sharedMu.Lock()
	s, ok := shared[key]
	if !ok {
		s = &sharedGuest{}
		shared[key] = s
	}
	sharedMu.Unlock()
	s.once.Do(func() {
		s.guest, s.err = Boot(context.Background(), c)
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	select {
	case <-s.guest.Done():
		t.Fatalf("the shared guest %s has ended", s.guest.Name())
	default:
	}
	return s.guest
}

// CloseShared ends the guests of Shared.
func CloseShared() error {
	sharedMu.Lock()
	defer sharedMu.Unlock()
	var errs []error
	for key, s := range shared {
		if s.guest != nil {
			errs = append(errs, s.guest.Close())
		}
		delete(shared, key)
	}
	return errors.Join(errs...)
}

// Main runs a package's tests and ends the guests they shared:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	if err := CloseShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
