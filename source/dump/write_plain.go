package dump

import (
	"encoding/binary"

	"github.com/umbravm/umbra/mem"
)

// rawEncoder adds nothing.
type rawEncoder struct{}

func (rawEncoder) begin(_ mem.Phys, pos uint64) (uint64, error) { return pos, nil }
func (rawEncoder) end(target, segment) error                    { return nil }
func (rawEncoder) finish(w target, _ []segment, _ uint64) error { return nil }

// limeEncoder puts a header before each run. The file's first, by which it is
// recognised, comes last.
type limeEncoder struct{ first segment }

func (*limeEncoder) begin(_ mem.Phys, pos uint64) (uint64, error) { return pos + limeHeader, nil }

func (l *limeEncoder) end(w target, g segment) error {
	if g.off == limeHeader {
		l.first = g
		return nil
	}
	return l.header(w, g)
}

func (l *limeEncoder) finish(w target, _ []segment, _ uint64) error { return l.header(w, l.first) }

func (*limeEncoder) header(w target, g segment) error {
	le := binary.LittleEndian
	b := make([]byte, limeHeader)
	le.PutUint32(b, limeMagic)
	le.PutUint32(b[4:], limeVersion)
	le.PutUint64(b[8:], uint64(g.start))
	le.PutUint64(b[16:], uint64(g.end()-1))
	_, err := w.WriteAt(b, int64(g.off)-limeHeader)
	return err
}
