package hostile

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// script is what a vCPU does, op by op.
type script []op

// storm makes the scripts of one storm on one device, and the rings that they are about.
type storm struct {
	r       *rand.Rand
	ram     []byte
	dev     *Device
	payload Payload
	// rude is the chance that something of the rings is not as it should be: one such thing ends a queue's service, so most storms
	// have few of them. What a request asks for is as bad in all.
	rude  float64
	rings []ring
}

// ring is where a storm has put a queue.
type ring struct {
	num               uint32
	size              uint32 // what lies in RAM for it: a power of two
	desc, avail, used uint64
	idx               uint16 // of what is available
	heads             []uint16
}

// Storm has both vCPUs do harm to a device, as r says, until they have come to their scripts' ends. while, which may be nil, runs
// meanwhile.
func (g *Guest) Storm(r *rand.Rand, d *Device, p Payload, while func()) error {
	st := &storm{r: r, ram: g.ram, dev: d, payload: p, rude: pick(r, 0.001, 0.001, 0.01, 0.1, 0.4)}
	first := st.begin()
	for range 10 + r.IntN(60) {
		st.act(&first)
	}
	var second script
	for range 10 + r.IntN(80) {
		st.mutate(&second)
		if st.chance(0.3) {
			st.act(&second)
		}
	}
	return g.both(first, second, while)
}

func (g *Guest) both(first, second script, while func()) error {
	g.start(0, first)
	g.start(1, second)
	if while != nil {
		while()
	}
	for cpu := range CPUs {
		if err := g.await(cpu); err != nil {
			return err
		}
	}
	return nil
}

func (st *storm) chance(p float64) bool { return st.r.Float64() < p }
func (st *storm) wrong() bool           { return st.chance(st.rude) }

// begin takes the device through its initialisation, more or less, with rings full of requests.
func (st *storm) begin() script {
	var s script
	if !st.wrong() {
		s = append(s, st.w(regStatus, 0))
	}
	accepted := st.dev.Features & (st.r.Uint64() | 1<<32)
	if st.chance(0.3) {
		accepted = st.dev.Features
	}
	if st.wrong() {
		accepted = st.r.Uint64()
	}
	s = append(s, st.w(regStatus, statusAcknowledge), st.w(regStatus, statusAcknowledge|statusDriver),
		st.w(regDriverFeaturesSel, 0), st.w(regDriverFeatures, uint32(accepted)),
		st.w(regDriverFeaturesSel, 1), st.w(regDriverFeatures, uint32(accepted>>32)))
	if !st.wrong() {
		s = append(s, st.w(regStatus, statusAcknowledge|statusDriver|statusFeaturesOK))
	}
	st.rings = st.rings[:0]
	for q, most := range st.dev.QueueSizes {
		rg := st.place(most)
		st.fill(&rg, q)
		st.rings = append(st.rings, rg)
		if st.chance(st.rude / 4) {
			continue // left disabled
		}
		s = append(s, st.w(regQueueSel, uint32(q)), st.w(regQueueNum, rg.num))
		for _, p := range [...]struct {
			reg  uint32
			addr uint64
		}{{regQueueDesc, rg.desc}, {regQueueDriver, rg.avail}, {regQueueDevice, rg.used}} {
			s = append(s, st.w(p.reg, uint32(p.addr)), st.w(p.reg+4, uint32(p.addr>>32)))
		}
		s = append(s, st.w(regQueueReady, 1))
	}
	s = append(s, st.w(regStatus, statusAcknowledge|statusDriver|statusFeaturesOK|statusDriverOK))
	for q := range st.dev.QueueSizes {
		s = append(s, st.w(regQueueNotify, uint32(q)))
	}
	return s
}

func (st *storm) w(off, v uint32) op { return op{opWrite32, st.dev.reg(off), v, 0} }

// place decides where a queue lies: mostly in RAM, in its own memory.
func (st *storm) place(most uint32) ring {
	rg := ring{size: most >> st.r.IntN(3)}
	if rg.size = max(rg.size, 1); st.chance(0.3) {
		rg.size = min(most, 1<<st.r.IntN(5))
	}
	rg.num = rg.size
	if st.wrong() {
		rg.num = st.value()
	}
	n := uint64(rg.size)
	rg.desc = st.address(16*n, 16)
	rg.avail = st.address(6+2*n, 2)
	rg.used = st.address(6+8*n, 4)
	if st.wrong() { // on top of each other
		rg.avail = rg.desc
	}
	if st.wrong() {
		rg.used = rg.desc
	}
	return rg
}

// arena is an address of n bytes of RAM, or of as many as make sense, that are not the guest's program.
func (st *storm) arena(n, align uint64) uint64 {
	n = min(n, 16<<20)
	for {
		if a := st.r.Uint64N(RAMSize-n) &^ (align - 1); harmless(a, n) {
			return a
		}
	}
}

// margin is how far from its program the guest stays with what devices write.
const margin = 1 << 20

// harmless says that a device may write n bytes at a: into the arena, or nowhere if it is worth anything.
func harmless(a, n uint64) bool {
	return a >= RAMSize || n > RAMSize-a || a >= programEnd+margin || a+n <= programAddr-margin
}

// address is one for n bytes: in RAM, or not quite.
func (st *storm) address(n, align uint64) uint64 {
	if !st.wrong() {
		return st.arena(n, align)
	}
	edges := [...]uint64{
		RAMSize - n, RAMSize - n + align, RAMSize - 1, RAMSize, RAMSize - n - align, // the end of RAM
		0, 1, align, 0xfff, 0xa0000 - n, // its beginning
		bootTimerAddr, virtioAddr, virtioAddr + st.r.Uint64N(windows*windowSize), 3 << 30, lapicAddr, 0xfec00000,
		4<<30 - n, 4 << 30, 4<<30 + st.r.Uint64N(RAMSize), 1 << 63, -n, -n & ^(align - 1), ^uint64(0), 1<<64 - 4096,
		uint64(st.value()), st.r.Uint64(), st.arena(n, 1) | 1,
	}
	a := edges[st.r.IntN(len(edges))]
	if !harmless(a, max(n, 1<<20)) {
		return st.arena(n, align)
	}
	return a
}

// value is a number that programs like to get wrong.
func (st *storm) value() uint32 {
	edges := [...]uint32{0, 1, 2, 3, 15, 16, 17, 255, 256, 257, 511, 512, 513, 4095, 4096, 0x7fff, 0x8000, 0xffff, 0x10000, 0x10001,
		1<<20 - 1, 1 << 20, 1 << 22, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff}
	switch st.r.IntN(3) {
	case 0:
		return st.r.Uint32()
	case 1:
		return st.r.Uint32N(300)
	}
	return edges[st.r.IntN(len(edges))]
}

// at is RAM, or nil where there is none.
func (st *storm) at(addr, n uint64) []byte {
	if addr >= RAMSize || n > RAMSize-addr {
		return nil
	}
	return st.ram[addr : addr+n]
}

// fill puts requests into a queue, wherever it is.
func (st *storm) fill(rg *ring, queue int) {
	desc := st.at(rg.desc, 16*uint64(rg.size))
	avail := st.at(rg.avail, 6+2*uint64(rg.size))
	if desc == nil || avail == nil {
		return
	}
	if used := st.at(rg.used, 6+8*uint64(rg.size)); used != nil && !st.wrong() {
		clear(used)
	}
	for i := uint16(0); uint32(i) < rg.size; {
		rg.heads = append(rg.heads, i)
		i += st.chain(desc, i, uint16(rg.size), queue)
	}
	le := binary.LittleEndian
	le.PutUint16(avail, uint16(st.r.IntN(2)))
	for i := range rg.size {
		le.PutUint16(avail[4+2*i:], st.head(rg))
	}
	le.PutUint16(avail[4+2*rg.size:], uint16(st.r.IntN(int(rg.size)+1))) // used_event
	rg.idx = uint16(st.r.IntN(len(rg.heads) + 1))
	if st.wrong() {
		rg.idx = uint16(st.value())
	}
	le.PutUint16(avail[2:], rg.idx)
}

func (st *storm) head(rg *ring) uint16 {
	if len(rg.heads) == 0 || st.chance(st.rude/4) {
		return uint16(st.value())
	}
	return rg.heads[st.r.IntN(len(rg.heads))]
}

// piece is a buffer of a chain.
type piece struct {
	addr  uint64
	n     uint32
	flags uint16
}

// chain writes a request's descriptors from i on, and says how many: a request of the device's kind, then room for an answer.
func (st *storm) chain(desc []byte, i, size uint16, queue int) uint16 {
	var pieces []piece
	if p := st.request(queue); len(p) > 0 {
		pieces = st.cut(p, pieces)
	}
	for n := st.r.IntN(4); n > 0 || len(pieces) == 0; n-- {
		sizes := [...]uint32{1, 12, 16, 44, 80, 512, 1024, 4096, 4096, 16384, 65536, 65548, 1 << 20}
		n := sizes[st.r.IntN(len(sizes))]
		if st.wrong() {
			n = st.value()
		}
		pieces = append(pieces, piece{st.address(uint64(n), 1<<st.r.IntN(13)), n, descWrite})
	}
	if st.chance(0.5) { // a status, or whatever
		pieces = append(pieces, piece{st.address(1, 1), 1, descWrite})
	}
	if st.wrong() {
		st.r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	}
	if st.chance(0.15) {
		return st.indirect(desc, i, pieces)
	}
	pieces = pieces[:min(len(pieces), int(size-i))]
	for k, p := range pieces {
		next, flags := i+uint16(k)+1, p.flags
		if k < len(pieces)-1 {
			flags |= descNext
		}
		st.descriptor(desc[16*(int(i)+k):], p, flags, next)
	}
	return uint16(len(pieces))
}

// indirect puts a chain into a table of its own.
func (st *storm) indirect(desc []byte, i uint16, pieces []piece) uint16 {
	table := piece{st.arena(16*uint64(len(pieces)), 16), uint32(16 * len(pieces)), 0}
	b := st.at(table.addr, uint64(table.n))
	for k, p := range pieces {
		next, flags := uint16(k)+1, p.flags
		if k < len(pieces)-1 {
			flags |= descNext
		}
		st.descriptor(b[16*k:], p, flags, next)
	}
	if st.wrong() {
		table.addr = st.address(uint64(table.n), 1)
	}
	st.descriptor(desc[16*int(i):], table, descIndirect, uint16(st.value()))
	return 1
}

func (st *storm) descriptor(b []byte, p piece, flags, next uint16) {
	// Once in a chain, not in each of its descriptors.
	if st.chance(st.rude / 4) {
		switch st.r.IntN(5) {
		case 0:
			flags ^= 1 << st.r.IntN(16)
		case 1:
			next = uint16(st.value()) // a loop, or out of the table
		case 2:
			flags, next = flags|descNext, 0
		case 3:
			p.n = 0
		case 4:
			p.n = st.value()
		}
	}
	if !harmless(p.addr, uint64(p.n)) {
		p.addr = st.arena(1, 16)
		p.n = min(p.n, uint32(max(RAMSize-p.addr, 1)))
		if !harmless(p.addr, uint64(p.n)) {
			p.n = 1
		}
	}
	le := binary.LittleEndian
	le.PutUint64(b, p.addr)
	le.PutUint32(b[8:], p.n)
	le.PutUint16(b[12:], flags)
	le.PutUint16(b[14:], next)
}

func (st *storm) request(queue int) []byte {
	if st.payload == nil {
		if st.chance(0.5) {
			return nil
		}
		p := make([]byte, st.r.IntN(256))
		for i := range p {
			p[i] = byte(st.r.Uint32())
		}
		return p
	}
	p := st.payload(st.r, queue)
	if len(p) > 0 && st.chance(0.05) {
		p = p[:st.r.IntN(len(p))]
	}
	if len(p) > 0 && st.chance(0.05) {
		p[st.r.IntN(len(p))] ^= 1 << st.r.IntN(8)
	}
	return p
}

// cut puts p into guest RAM, in one piece or in several.
func (st *storm) cut(p []byte, pieces []piece) []piece {
	for len(p) > 0 {
		n := len(p)
		if st.chance(0.3) {
			n = 1 + st.r.IntN(n)
		}
		a := st.address(uint64(n), 1)
		copy(st.at(a, uint64(n)), p[:n])
		pieces = append(pieces, piece{a, uint32(n), 0})
		p = p[n:]
	}
	return pieces
}

// String names the device, for errors.
func (d *Device) String() string {
	return fmt.Sprintf("device of type %d at window %d", d.Type, d.Window)
}
