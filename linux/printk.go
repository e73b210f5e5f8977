package linux

import (
	"fmt"
	"time"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// LogRecord is a record of the kernel's log, as /dev/kmsg gives it.
type LogRecord struct {
	Seq       uint64     `json:"seq"`       // grows by one from record to record; a gap is records lost
	Seconds   float64    `json:"seconds"`   // since boot, by the clock of the log
	Time      *time.Time `json:"time"`      // by the machine's own clock
	Facility  string     `json:"facility"`  // "kern", "user", "daemon", …
	Level     string     `json:"level"`     // "emerg" … "debug"
	Text      string     `json:"text"`      // of one or more lines, without the last newline
	Caller    string     `json:"caller"`    // "T412" for a thread, "C1" for a CPU in an interrupt
	Subsystem *string    `json:"subsystem"` // of the device the record is about
	Device    *string    `json:"device"`    // "+pci:0000:00:01.0", "b8:0", …
	Continued bool       `json:"continued"` // the text goes on from the record before
	Moved     bool       `json:"moved"`     // memory kept changing while this was read

	Nanoseconds uint64 `json:"-"` // since boot
	Priority    uint8  `json:"-"` // level
	Source      uint8  `json:"-"` // facility
}

// printkLayout is kernel/printk/printk_ringbuffer.h, which 5.10 brought.
type printkLayout struct {
	Descs     btf.Field `btf:"printk_ringbuffer.desc_ring.descs"`
	Infos     btf.Field `btf:"printk_ringbuffer.desc_ring.infos"`
	CountBits btf.Field `btf:"printk_ringbuffer.desc_ring.count_bits"`
	HeadID    btf.Field `btf:"printk_ringbuffer.desc_ring.head_id.counter"`
	TailID    btf.Field `btf:"printk_ringbuffer.desc_ring.tail_id.counter"`
	Data      btf.Field `btf:"printk_ringbuffer.text_data_ring.data"`
	SizeBits  btf.Field `btf:"printk_ringbuffer.text_data_ring.size_bits"`

	Desc  btf.Field `btf:"prb_desc"`
	State btf.Field `btf:"prb_desc.state_var.counter"`
	Begin btf.Field `btf:"prb_desc.text_blk_lpos.begin"`
	Next  btf.Field `btf:"prb_desc.text_blk_lpos.next"`

	Info      btf.Field `btf:"printk_info"`
	Seq       btf.Field `btf:"printk_info.seq"`
	Stamp     btf.Field `btf:"printk_info.ts_nsec"`
	TextLen   btf.Field `btf:"printk_info.text_len"`
	Facility  btf.Field `btf:"printk_info.facility"`
	Flags     btf.Field `btf:"printk_info.flags"`
	Level     btf.Field `btf:"printk_info.level"`
	Caller    btf.Field `btf:"printk_info.caller_id"`
	Subsystem btf.Field `btf:"printk_info.dev_info.subsystem"`
	Device    btf.Field `btf:"printk_info.dev_info.device"`
}

// Bounds: log_buf_len= takes up to 2 GiB of text, and a descriptor stands for 32
// bytes of it.
const (
	maxLogDescBits = 26
	maxLogSizeBits = 31
	maxLogRecords  = 1 << 18 // the newest of more
	maxLogText     = 32 << 20
)

// Parts of a descriptor's state word, and logical positions that stand for none.
const (
	logIDMask     = 1<<62 - 1
	logStateShift = 62
	logFinalized  = 2      // written, and will not change until it is used again
	lposEmpty     = 0x3    // EMPTY_LINE_LPOS: there is no text
	logContinued  = 1 << 3 // LOG_CONT, kernel/printk/internal.h
)

// Dmesg returns the kernel's log, oldest record first: all that a reader of
// /dev/kmsg would get from its start, records that "dmesg --clear" hides
// included. Records that are being written, and those whose text the buffer no
// longer holds, are left out, as there.
func Dmesg(v *kernel.View) ([]LogRecord, error) {
	log, err := readLog(v)
	// A machine that logs fast writes over records while they are read; when most
	// were lost, what is there now is read.
	for try := 1; err == nil && log.lost() && try < maxLogTries && v.Source().Info().Live; try++ {
		log, err = readLog(v.Kernel.View(v.Snapshot().Context(), mem.Options{}))
	}
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	if log.lost() {
		return nil, fmt.Errorf("log: %d of %d records were written over while they were read", log.recycled, log.recycled+len(log.records))
	}
	if log.older > 0 {
		v.Find("log", "its %d oldest records are left out", log.older)
	}
	for _, f := range log.odd {
		v.Find("log", "%s", f)
	}
	return log.records, nil
}

// maxLogTries is how often a log that is written over is read.
const maxLogTries = 4

// logRead is the log as read once.
type logRead struct {
	older    uint64 // records left out because there are too many
	records  []LogRecord
	recycled int // descriptors that were used again meanwhile
	odd      []string
}

// lost tells whether most of the log was written over while it was read.
func (r *logRead) lost() bool { return r.recycled > len(r.records) }

// logRow is a record while it is being read.
type logRow struct {
	LogRecord
	state recordState
	err   error
	held  uint64
}

func readLog(v *kernel.View) (*logRead, error) {
	l, err := kernel.Layout[printkLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	var ring logRing
	var boot *time.Time
	err = v.Do(func(w *kernel.Walk) {
		ring = readLogRing(w, l)
		boot = nil
		if t, err := BootTime(w); err == nil {
			boot = &t
		}
	})
	if err != nil {
		return nil, err
	}
	out := &logRead{}
	if ring.n > maxLogRecords {
		out.older = ring.n - maxLogRecords
		ring.tail, ring.n = ring.tail+out.older, maxLogRecords
	}
	rows := make([]logRow, ring.n)
	err = v.Each(len(rows), func(i int, w *kernel.Walk) {
		row := &rows[i]
		ring.total.back(&row.held)
		*row = logRow{}
		row.LogRecord, row.state = ring.record(w, (ring.tail+uint64(i))&logIDMask, &row.held)
		row.err = w.Err()
	}, func(i int) { rows[i].Moved = true })
	if err != nil {
		return nil, err
	}
	out.collect(rows, boot)
	return out, nil
}

// collect keeps the rows that are records.
func (r *logRead) collect(rows []logRow, boot *time.Time) {
	for i := range rows {
		row := &rows[i]
		switch {
		case row.err != nil:
			r.odd = append(r.odd, fmt.Sprintf("record %d of %d: %v", i, len(rows), row.err))
		case row.state == recordRecycled || row.Moved:
			r.recycled++
		case row.state == recordReadable:
			if boot != nil {
				at := boot.Add(time.Duration(row.Nanoseconds)).UTC()
				row.Time = &at
			}
			r.records = append(r.records, row.LogRecord)
		}
	}
	if r.records == nil {
		r.records = []LogRecord{}
	}
}

// logRing is where the log lies.
type logRing struct {
	l            *printkLayout
	descs, infos mem.Virt
	data         mem.Virt
	descMask     uint64
	sizeBits     uint64
	tail, n      uint64 // id of the oldest descriptor in use, and how many are
	total        budget // of text
}

// readLogRing reads the ring that the kernel's "prb" points to.
func readLogRing(w *kernel.Walk, l *printkLayout) logRing {
	r := logRing{l: l}
	at, err := w.View().Symbol("prb")
	if err != nil {
		w.Fail(err)
		return r
	}
	rb := w.Pointer(at)
	r.descs, r.infos, r.data = w.Ptr(rb, l.Descs), w.Ptr(rb, l.Infos), w.Ptr(rb, l.Data)
	bits := w.Uint(rb, l.CountBits)
	r.sizeBits = w.Uint(rb, l.SizeBits)
	head, tail := w.Uint(rb, l.HeadID), w.Uint(rb, l.TailID)
	if !w.OK() {
		return r
	}
	if bits == 0 || bits > maxLogDescBits || r.sizeBits < 3 || r.sizeBits > maxLogSizeBits {
		w.Failf("ring buffer at %v: 2^%d records, 2^%d bytes: %w", rb, bits, r.sizeBits, kernel.ErrTooLong)
		return r
	}
	r.descMask, r.tail = 1<<bits-1, tail&logIDMask
	r.n = (head-tail)&logIDMask + 1
	// Records do not overlap, but for those that come while others are read.
	r.total.left = min(uint64(2)<<r.sizeBits, maxLogText)
	if r.n > r.descMask+1 {
		w.Failf("ring buffer at %v: records %#x to %#x: %w", rb, tail, head, kernel.ErrTooLong)
	}
	return r
}

// recordState says what a descriptor stands for.
type recordState int

const (
	recordNone     recordState = iota // being written, free, or its text is gone: a reader gets nothing
	recordRecycled                    // used again since the ring was read
	recordReadable
)

// record reads the record whose descriptor has the given id.
func (r *logRing) record(w *kernel.Walk, id uint64, held *uint64) (rec LogRecord, state recordState) {
	l := r.l
	desc := r.descs + mem.Virt(id&r.descMask*uint64(l.Desc.Size))
	info := r.infos + mem.Virt(id&r.descMask*uint64(l.Info.Size))
	w.Guard(desc, l.State)
	var word, begin, next, length uint64
	err := w.Try(func() {
		word, begin, next = w.Uint(desc, l.State), w.Uint(desc, l.Begin), w.Uint(desc, l.Next)
	})
	infoErr := w.Try(func() { length = r.info(w, info, &rec) })
	if err = firstError(err, infoErr); err != nil {
		w.Fail(err)
		return rec, recordNone
	}
	switch {
	case word&logIDMask != id:
		return rec, recordRecycled
	case word>>logStateShift != logFinalized:
		return rec, recordNone
	case rec.Seq&r.descMask != id&r.descMask:
		w.Failf("sequence number %d in the place of %d", rec.Seq, id&r.descMask)
		return rec, recordNone
	case !r.belong(rec.Seq, id):
		return rec, recordRecycled
	}
	if !r.total.take(w, held, length) {
		return rec, recordNone
	}
	var ok bool
	if rec.Text, ok = r.text(w, id, begin, next, length); !ok || !w.OK() {
		return rec, recordNone
	}
	return rec, recordReadable
}

// belong tells whether a sequence number and a descriptor's id are of one record.
// Both grow by one with each; ids began one ring below 0 (DESC0_ID), which up to
// 6.12 at least was computed in 32 bits.
func (r *logRing) belong(seq, id uint64) bool {
	first := -(r.descMask + 1)
	return (id-seq)&logIDMask == first&logIDMask || id-seq == first&(1<<32-1)
}

// info reads a record's printk_info and returns the length of its text.
func (r *logRing) info(w *kernel.Walk, info mem.Virt, rec *LogRecord) (length uint64) {
	l := r.l
	rec.Seq, rec.Nanoseconds = w.Uint(info, l.Seq), w.Uint(info, l.Stamp)
	rec.Source, rec.Priority = uint8(w.Uint(info, l.Facility)), uint8(w.Uint(info, l.Level))
	rec.Seconds = float64(rec.Nanoseconds) / 1e9
	rec.Facility, rec.Level = facilityName(rec.Source), levelNames[rec.Priority&7]
	rec.Continued = w.Uint(info, l.Flags)&logContinued != 0
	rec.Caller = callerName(uint32(w.Uint(info, l.Caller)))
	if s := w.Text(info, l.Subsystem); s != "" {
		rec.Subsystem = &s
	}
	if s := w.Text(info, l.Device); s != "" {
		rec.Device = &s
	}
	return w.Uint(info, l.TextLen)
}

// text returns the text between two logical positions of the data ring; false when
// it was written over.
func (r *logRing) text(w *kernel.Walk, id, begin, next, length uint64) (string, bool) {
	if begin&1 != 0 && next&1 != 0 {
		return "", begin == lposEmpty && next == lposEmpty
	}
	at, err := logBlock(r.sizeBits, begin, next, length)
	if err != nil {
		w.Fail(err)
		return "", false
	}
	if owner := w.Word(r.data + mem.Virt(at)); w.OK() && owner != id {
		return "", false
	}
	return string(pagewise(w, r.data+mem.Virt(at+logIDSize), length)), true
}

// logIDSize is what a block begins with: the id of its descriptor (struct prb_data_block).
const logIDSize = 8

// logBlock returns where in a data ring of 2^sizeBits bytes the block lies whose
// logical positions are begin and next, and which holds length bytes of text
// (get_data). A block that would run over the end of the ring lies at its start.
func logBlock(sizeBits, begin, next, length uint64) (at uint64, err error) {
	size := uint64(1) << sizeBits
	wraps := func(lpos uint64) uint64 { return lpos >> sizeBits }
	at, space := begin&(size-1), next-begin
	switch wraps(next - 1) {
	case wraps(begin):
	case wraps(begin + size):
		at, space = 0, next&(size-1)
	default:
		return 0, fmt.Errorf("text from %#x to %#x in a ring of %#x bytes", begin, next, size)
	}
	if begin%logIDSize != 0 || next%logIDSize != 0 || space <= logIDSize || space > size-at || length > space-logIDSize {
		return 0, fmt.Errorf("%d bytes of text from %#x to %#x in a ring of %#x bytes", length, begin, next, size)
	}
	return at, nil
}

var levelNames = [8]string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}

var facilityNames = [...]string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news",
	"uucp", "cron", "authpriv", "ftp"}

// facilityName names a syslog facility as syslog(3) does.
func facilityName(f uint8) string {
	switch {
	case int(f) < len(facilityNames):
		return facilityNames[f]
	case f >= 16 && f < 24:
		return fmt.Sprintf("local%d", f-16)
	}
	return fmt.Sprint(f)
}

// callerName writes caller_id as print_caller does: its top bit tells a CPU from a thread.
func callerName(id uint32) string {
	kind := 'T'
	if id&(1<<31) != 0 {
		kind = 'C'
	}
	return fmt.Sprintf("%c%d", kind, id&^(1<<31))
}
