package lab

import (
	"bytes"
	"sync"
)

// consoleMax is how much of a console's output is kept, in bytes.
const consoleMax = 1 << 20

// console keeps the end of what a machine printed and tells when certain words
// come. It is the writer of QEMU's standard output.
type console struct {
	mu    sync.Mutex
	buf   []byte
	from  int           // where the present boot's output begins
	ready chan struct{} // closed when the marker came
	panic chan struct{} // closed when the kernel gave up
}

const (
	readyMarker = "umbra-lab: ready"
	panicMarker = "Kernel panic - not syncing"
	failMarker  = "umbra-lab: failed"
)

func newConsole() *console {
	c := &console{}
	c.restart()
	return c
}

// restart forgets markers seen so far: what comes belongs to another boot.
func (c *console) restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from = len(c.buf)
	c.ready, c.panic = make(chan struct{}), make(chan struct{})
}

// signals returns the channels of the present boot.
func (c *console) signals() (ready, failed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready, c.panic
}

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A marker can be split between two writes.
	boot := max(c.from, len(c.buf)-len(panicMarker))
	c.buf = append(c.buf, b...)
	recent := c.buf[boot:]
	raise(c.ready, bytes.Contains(recent, []byte(readyMarker)))
	raise(c.panic, bytes.Contains(recent, []byte(panicMarker)) || bytes.Contains(recent, []byte(failMarker)))
	if drop := len(c.buf) - consoleMax; drop > consoleMax {
		c.buf = append([]byte(nil), c.buf[drop:]...)
		c.from = max(c.from-drop, 0)
	}
	return len(b), nil
}

func raise(ch chan struct{}, now bool) {
	if !now {
		return
	}
	select {
	case <-ch:
	default:
		close(ch)
	}
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.buf)
}

// tail returns the last n bytes printed.
func (c *console) tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return tail(c.buf, n)
}
