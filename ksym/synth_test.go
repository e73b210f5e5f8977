package ksym

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/umbravm/umbra/mem"
)

// layout is an order of tables some kernels have.
type layout struct {
	name      string
	encoding  Encoding
	addrFirst bool // addresses before the names, else behind the tokens
	seqs      bool // kallsyms_seqs_of_names between markers and tokens, or at the end
	align     uint64
}

var layouts = []layout{
	{"5.10", PercpuAbsolute, true, false, 8},
	{"5.10 addresses", Plain, true, false, 8},
	{"5.10 not SMP", BaseRelative, true, false, 8},
	{"6.2", PercpuAbsolute, true, true, 8},
	{"6.2 addresses", Plain, true, true, 8},
	{"6.5", PercpuAbsolute, false, true, 8},
	{"6.15", BaseRelative, false, true, 8},
	{"7.0", PCRelative, false, true, 4},
}

// memImage is an image made of bytes, with pages that cannot be read.
type memImage struct {
	base  mem.Virt
	bytes []byte
	holes map[int]bool // by page number
	reads int
}

func (m *memImage) Base() mem.Virt { return m.base }
func (m *memImage) Size() uint64   { return uint64(len(m.bytes)) }

func (m *memImage) ReadAt(p []byte, off int64) (int, error) {
	m.reads++
	for n := 0; n < len(p); {
		at := int(off) + n
		if at >= len(m.bytes) || m.holes[at/mem.PageSize] {
			return n, errors.New("hole")
		}
		end := min((at/mem.PageSize+1)*mem.PageSize, len(m.bytes))
		n += copy(p[n:], m.bytes[at:end])
	}
	return len(p), nil
}

// clone returns a copy that can be changed.
func (m *memImage) clone() *memImage {
	return &memImage{base: m.base, bytes: slices.Clone(m.bytes)}
}

// slide moves an image as KASLR does: what is an address in it changes.
func (m *memImage) slide(l layout, loc Locations, n int, by mem.Virt) (*memImage, Locations) {
	s := m.clone()
	s.base += by
	add := func(at mem.Virt) {
		p := s.bytes[at-m.base:]
		if v := mem.Virt(binary.LittleEndian.Uint64(p)); v >= kernelHalf {
			binary.LittleEndian.PutUint64(p, uint64(v+by))
		}
	}
	if l.encoding == Plain {
		for i := range n {
			add(loc.Addresses + mem.Virt(8*i))
		}
	} else if l.encoding != PCRelative {
		add(loc.RelativeBase)
	}
	for _, f := range []*mem.Virt{
		&loc.NumSyms, &loc.Names, &loc.Markers, &loc.TokenTable,
		&loc.TokenIndex, &loc.Offsets, &loc.RelativeBase, &loc.Addresses,
	} {
		if *f != 0 {
			*f += by
		}
	}
	return s, loc
}

const synthBase mem.Virt = 0xffff_ffff_8100_0000

// synthSymbols makes n symbols of an image of size bytes: with duplicates, long
// names, aliases of one address and, where the layout has them, absolute ones.
func synthSymbols(l layout, n int, size uint64, seed uint64) []Symbol {
	r := rand.New(rand.NewPCG(seed, 1))
	words := strings.Fields("init task sched net ipv4 tcp udp skb page alloc free lock irq cpu percpu vfs inode dentry ext4 bpf prog run queue work timer trace event map list")
	used := map[string]bool{}
	unique := func() string {
		for {
			parts := []string{}
			for range 1 + r.IntN(4) {
				parts = append(parts, words[r.IntN(len(words))])
			}
			name := strings.Join(parts, "_") + fmt.Sprintf(".%d", r.IntN(1e6))
			if !used[name] {
				used[name] = true
				return name
			}
		}
	}
	syms := make([]Symbol, 0, n)
	absolute := 0
	if l.encoding == PercpuAbsolute || l.encoding == Plain {
		absolute = 40
	}
	for i := range absolute {
		syms = append(syms, Symbol{unique(), 'A', mem.Virt(i * 64)})
	}
	rest := n - absolute - 2
	for i := range rest {
		s := Symbol{unique(), "tTdDrRbBVW"[r.IntN(10)], synthBase + mem.Virt(uint64(i)*size/uint64(rest))}
		switch {
		case i%97 == 1:
			s.Name = "dup_name"
		case i%301 == 2:
			s.Name = strings.Repeat("Zq$", 100+r.IntN(60)) + s.Name
		case i%11 == 3:
			s.Addr = syms[len(syms)-1].Addr
		}
		syms = append(syms, s)
	}
	syms = append(syms, Symbol{"_text", 'T', synthBase}, Symbol{"_end", 'B', synthBase + mem.Virt(size)})
	slices.SortStableFunc(syms, func(a, b Symbol) int { return cmp.Compare(a.Addr, b.Addr) })
	return syms
}

// synthTokens gives unused codes to frequent pieces of names.
func synthTokens(syms []Symbol) [tokenCount]string {
	var toks [tokenCount]string
	count := map[string]int{}
	for c := byte('0'); c <= '9'; c++ {
		toks[c] = string(c)
	}
	for k, s := range syms {
		full := string(s.Type) + s.Name
		for i := range len(full) {
			toks[full[i]] = full[i : i+1]
			for n := 2; k%(1+len(syms)/500) == 0 && n <= 6 && i+n <= len(full); n++ {
				count[full[i:i+n]] += n - 1
			}
		}
	}
	pieces := make([]string, 0, len(count))
	for p := range count {
		pieces = append(pieces, p)
	}
	slices.SortFunc(pieces, func(a, b string) int {
		return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a, b))
	})
	for i := range toks {
		if toks[i] == "" && len(pieces) > 0 {
			toks[i], pieces = pieces[0], pieces[1:]
		}
	}
	return toks
}

// compress encodes a name, longest token first.
func compress(full string, codes map[string]byte) []byte {
	var out []byte
	for len(full) > 0 {
		n := min(6, len(full))
		for {
			if c, ok := codes[full[:n]]; ok {
				out, full = append(out, c), full[n:]
				break
			}
			n--
		}
	}
	return out
}

// synth writes symbols into an image of size bytes the way scripts/kallsyms.c
// lays them out, in the middle of noise, and says where everything is.
func synth(l layout, syms []Symbol, size int, seed uint64) (*memImage, Locations) {
	img := &memImage{base: synthBase, bytes: make([]byte, size)}
	noise := rand.New(rand.NewPCG(seed, 2))
	for i := 0; i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(img.bytes[i:], noise.Uint64())
	}
	toks := synthTokens(syms)
	codes := map[string]byte{}
	for i, t := range toks {
		codes[t] = byte(i)
	}
	var loc Locations
	pos := size / 3 &^ 7
	le := binary.LittleEndian
	put := func(at *mem.Virt, p []byte) {
		for uint64(pos)%l.align != 0 {
			img.bytes[pos] = 0
			pos++
		}
		*at = synthBase + mem.Virt(pos)
		pos += copy(img.bytes[pos:], p)
	}
	var names, markers, seqs, text, index []byte
	for i, s := range syms {
		if i%blockNames == 0 {
			markers = le.AppendUint32(markers, uint32(len(names)))
		}
		c := compress(string(s.Type)+s.Name, codes)
		if len(c) < 128 {
			names = append(names, byte(len(c)))
		} else {
			names = append(names, byte(len(c))|0x80, byte(len(c)>>7))
		}
		names = append(names, c...)
		seqs = append(seqs, byte(i>>16), byte(i>>8), byte(i))
	}
	for _, t := range toks {
		index = le.AppendUint16(index, uint16(len(text)))
		text = append(append(text, t...), 0)
	}
	var ignored mem.Virt
	addresses := func() {
		if l.encoding == Plain {
			put(&loc.Addresses, encodeAddresses(l, syms, 0))
			return
		}
		for uint64(pos)%l.align != 0 {
			img.bytes[pos] = 0
			pos++
		}
		put(&loc.Offsets, encodeAddresses(l, syms, synthBase+mem.Virt(pos)))
		if l.encoding != PCRelative {
			put(&loc.RelativeBase, le.AppendUint64(nil, uint64(synthBase)))
		}
	}
	if l.addrFirst {
		addresses()
	}
	put(&loc.NumSyms, le.AppendUint32(nil, uint32(len(syms))))
	put(&loc.Names, names)
	put(&loc.Markers, markers)
	if l.addrFirst && l.seqs {
		put(&ignored, seqs)
	}
	put(&loc.TokenTable, text)
	put(&loc.TokenIndex, index)
	if !l.addrFirst {
		addresses()
		put(&ignored, seqs)
	}
	return img, loc
}

func encodeAddresses(l layout, syms []Symbol, at mem.Virt) []byte {
	var p []byte
	for i, s := range syms {
		off := uint32(s.Addr)
		switch {
		case l.encoding == Plain:
			p = binary.LittleEndian.AppendUint64(p, uint64(s.Addr))
			continue
		case l.encoding == PCRelative:
			off = uint32(s.Addr - at - mem.Virt(4*i))
		case l.encoding == BaseRelative:
			off = uint32(s.Addr - synthBase)
		case s.Addr >= kernelHalf:
			off = uint32(synthBase - 1 - s.Addr)
		}
		p = binary.LittleEndian.AppendUint32(p, off)
	}
	return p
}
