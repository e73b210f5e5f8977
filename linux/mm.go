package linux

import (
	"bytes"

	"github.com/umbravm/umbra/btf"
	"github.com/umbravm/umbra/kernel"
	"github.com/umbravm/umbra/mem"
)

// mmLayout is include/linux/mm_types.h.
type mmLayout struct {
	PGD      btf.Field `btf:"mm_struct.pgd"`
	TotalVM  btf.Field `btf:"mm_struct.total_vm"`
	RSS      btf.Field `btf:"mm_struct.rss_stat"` // an array of percpu_counter since 6.2
	Counter  btf.Field `btf:"percpu_counter.count"`
	ExeFile  btf.Field `btf:"mm_struct.exe_file"`
	FilePath btf.Field `btf:"file.f_path"`
	ArgStart btf.Field `btf:"mm_struct.arg_start"`
	ArgEnd   btf.Field `btf:"mm_struct.arg_end"`
	EnvStart btf.Field `btf:"mm_struct.env_start"`
	EnvEnd   btf.Field `btf:"mm_struct.env_end"`
}

// Counters of resident pages (include/linux/mm_types_task.h): file, anonymous, shared.
var residentCounters = [...]int{0, 1, 3}

// sizes returns what /proc/PID/stat gives as vsize and rss, in bytes.
func (l *mmLayout) sizes(w *kernel.Walk, mm mem.Virt) (vsize, rss uint64) {
	vsize = w.Uint(mm, l.TotalVM) * mem.PageSize
	at := w.At(mm, l.RSS)
	for _, i := range residentCounters {
		slot := at + mem.Virt(i*8) // mm_rss_stat.count[i]
		if l.RSS.Elem != 0 {
			slot = at + mem.Virt(i*int(l.RSS.Elem)) + mem.Virt(l.Counter.Offset)
		}
		if n := int64(w.Word(slot)); n > 0 {
			rss += uint64(n) * mem.PageSize
		}
	}
	return vsize, rss
}

// maxArgs bounds a command line or an environment, in bytes.
const maxArgs = 2 << 20

// cmdline returns what /proc/PID/cmdline holds (fs/proc/base.c, get_mm_cmdline):
// the arguments, or the title the process wrote over them.
func (l *mmLayout) cmdline(w *kernel.Walk, mm mem.Virt) []byte {
	start, end := w.Uint(mm, l.ArgStart), w.Uint(mm, l.ArgEnd)
	envStart, envEnd := w.Uint(mm, l.EnvStart), w.Uint(mm, l.EnvEnd)
	if !w.OK() || envEnd == 0 || start >= end {
		return nil
	}
	if end-start > maxArgs {
		w.Failf("%d bytes of arguments: %w", end-start, kernel.ErrTooLong)
		return nil
	}
	args := l.userBytes(w, mm, start, end-start)
	if len(args) == 0 || args[len(args)-1] == 0 {
		return args
	}
	// The last byte was overwritten: a title of at most a page, which may run on into
	// the environment.
	title := args[:min(len(args), mem.PageSize)]
	if i := bytes.IndexByte(title, 0); i >= 0 {
		return title[:i]
	}
	if room := uint64(mem.PageSize - len(title)); room > 0 && envStart == end && envEnd > envStart {
		env := l.userBytes(w, mm, envStart, min(envEnd-envStart, room))
		if i := bytes.IndexByte(env, 0); i >= 0 {
			env = env[:i]
		}
		title = append(title, env...)
	}
	return title
}

// userBytes reads the process's own memory.
func (l *mmLayout) userBytes(w *kernel.Walk, mm mem.Virt, start, size uint64) (b []byte) {
	space, err := w.View().Process(w.Ptr(mm, l.PGD))
	if err != nil {
		w.Fail(err)
		return nil
	}
	w.In(space, func() { b = w.Bytes(mem.Virt(start), size) })
	return b
}
