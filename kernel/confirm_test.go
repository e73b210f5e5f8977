package kernel

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/umbravm/umbra/mem"
	"github.com/umbravm/umbra/source"
)

// ticking is a machine of one page whose first byte counts how often it was read.
type ticking struct{ n byte }

func (s *ticking) Info() source.Info { return source.Info{Live: true, Local: true} }
func (s *ticking) Close() error      { return nil }
func (s *ticking) ReadPhys(_ context.Context, reads []mem.Read) error {
	for i := range reads {
		s.n++
		reads[i].Buf[0] = s.n
		reads[i].N = len(reads[i].Buf)
	}
	return nil
}

// TestConfirm has something found at one look but not at the next, and something
// found at each.
func TestConfirm(t *testing.T) {
	for _, static := range []bool{false, true} {
		v := (&Kernel{src: &ticking{}, levels: 4, image: &image{}}).View(context.Background(), mem.Options{Static: static})
		v.Find("earlier", "of another listing")
		ran := 0
		err := v.Confirm(func() error {
			ran++
			if _, err := v.snap.Uint64(0); err != nil {
				return err
			}
			v.Find("list", "goes to %#x", ran)
			if ran == 1 {
				v.Find("task 7", "was just ending")
			} else {
				v.Find("task 8", "was just starting")
			}
			return nil
		})
		want, wantRan := "[earlier: of another listing list: goes to 0x5]", looks
		if static { // a second look would show the same
			want, wantRan = "[earlier: of another listing list: goes to 0x1 task 7: was just ending]", 1
		}
		if got := fmt.Sprint(v.Findings()); err != nil || ran != wantRan || got != want {
			t.Errorf("static %v: %d looks, %v, %v; want %d, %v", static, ran, got, err, wantRan, want)
		}
	}
}

// TestConfirmError has a listing fail at the first look only.
func TestConfirmError(t *testing.T) {
	v := (&Kernel{src: &ticking{}, levels: 4, image: &image{}}).View(context.Background(), mem.Options{})
	ran := 0
	err := v.Confirm(func() error {
		if _, err := v.snap.Uint64(0); err != nil {
			return err
		}
		if ran++; ran == 1 {
			return errors.New("torn")
		}
		return nil
	})
	if err != nil || ran != 2 {
		t.Errorf("%d looks, %v", ran, err)
	}
}
