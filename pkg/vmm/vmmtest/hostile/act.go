package hostile

// act appends something that a driver does to its device's registers.
func (st *storm) act(s *script) {
	add := func(k kind, addr, lo, hi uint32) { *s = append(*s, op{k, addr, lo, hi}) }
	switch n := st.r.IntN(100); {
	case n < 30:
		if q := st.r.IntN(max(len(st.rings), 1)); q < len(st.rings) {
			st.offer(s, &st.rings[q])
			if !st.wrong() {
				*s = append(*s, st.w(regQueueNotify, uint32(q)))
				return
			}
		}
		add(opBurst, st.dev.reg(regQueueNotify), st.value(), 1+st.r.Uint32N(32))
	case n < 45:
		st.mutate(s)
	case n < 57: // any register, in any width, aligned or not
		addr := st.dev.reg(st.register())
		add(opWrite8+kind(st.r.IntN(4)), addr, st.value(), st.value())
	case n < 67:
		add(opRead8+kind(st.r.IntN(4)), st.dev.reg(st.register()), 0, 0)
	case n < 77: // the configuration space and beyond
		addr := st.dev.reg(regConfig + st.r.Uint32N(windowSize-regConfig-8))
		if st.chance(0.7) {
			addr = st.dev.reg(regConfig + st.r.Uint32N(128))
		}
		add([]kind{opWrite8, opWrite16, opWrite32, opWrite64, opRead8, opRead16, opRead32, opRead64, opXor}[st.r.IntN(9)], addr, st.value(), st.value())
	case n < 82:
		add(opWrite32, st.dev.reg(regInterruptACK), st.value(), 0)
	case n < 88:
		add(opDelay, 0, 1+st.r.Uint32N(500), 0)
	case n < 91:
		add(opWrite32, st.dev.reg(regStatus), 0, 0) // a reset in the midst of it
	case n < 93:
		*s = append(*s, st.begin()...)
	case n < 95: // the window by the string: each byte is an exit
		if st.chance(0.5) {
			add(opCopy, uint32(st.arena(64, 4)), st.dev.reg(st.register()&^7), 1+st.r.Uint32N(32))
		} else {
			add(opCopy, st.dev.reg(st.register()&^7), uint32(st.arena(64, 4)), 1+st.r.Uint32N(32))
		}
	case n < 97:
		add(opXor, st.dev.reg(st.register()&^3), st.value(), 0)
	case n < 98: // across the border to the next window
		add(opWrite8+kind(st.r.IntN(8)), st.dev.reg(windowSize-1-st.r.Uint32N(7)), st.value(), st.value())
	default: // where nobody is, or somebody else
		add(opWrite8+kind(st.r.IntN(8)), st.nobody(), st.value(), st.value())
	}
}

// register is an offset in a window: mostly of a register that there is.
func (st *storm) register() uint32 {
	if st.wrong() {
		return st.r.Uint32N(windowSize - 8)
	}
	known := [...]uint32{regMagic, 4, regDeviceID, 0xc, regDeviceFeatures, regDeviceFeaturesSel, regDriverFeatures, regDriverFeaturesSel,
		regQueueSel, regQueueNumMax, regQueueNum, regQueueReady, regQueueNotify, 0x60, regInterruptACK, regStatus, 0x80, 0x84, 0x90, 0x94,
		0xa0, 0xa4, 0xac, 0xb0, 0xb4, 0xb8, 0xbc, 0xc0, 0xfc, regConfig}
	return known[st.r.IntN(len(known))]
}

// nobody is an address outside RAM, but not that of a chip that KVM has: those could end the guest.
func (st *storm) nobody() uint32 {
	holes := [...]uint32{RAMSize, 0x80000000, bootTimerAddr, bootTimerAddr + 0xff8, virtioAddr + windows*windowSize, 0xd0000000, 0xfebffff0}
	return holes[st.r.IntN(len(holes))]
}

// offer makes one more request available, as a driver should.
func (st *storm) offer(s *script, rg *ring) {
	if st.at(rg.avail, 6+2*uint64(rg.size)) == nil {
		return
	}
	*s = append(*s, op{opWrite16, uint32(rg.avail) + 4 + 2*(uint32(rg.idx)&(rg.size-1)), uint32(st.head(rg)), 0})
	rg.idx++
	if st.wrong() {
		rg.idx = uint16(st.value())
	}
	*s = append(*s, op{opWrite16, uint32(rg.avail) + 2, uint32(rg.idx), 0})
}

// mutate appends a change of a ring that its device may be reading.
func (st *storm) mutate(s *script) {
	if len(st.rings) == 0 {
		return
	}
	rg := &st.rings[st.r.IntN(len(st.rings))]
	put := func(k kind, addr uint64, v uint32) {
		if st.at(addr, 8) != nil && harmless(addr, 8) {
			*s = append(*s, op{k, uint32(addr), v, st.value()})
		}
	}
	i := uint64(st.r.Uint32N(rg.size))
	if !st.chance(20 * st.rude) {
		st.offer(s, rg)
		return
	}
	switch st.r.IntN(10) {
	case 0, 1, 2:
		st.offer(s, rg)
	case 3: // a buffer's address: in RAM, as the other half stays what it was
		put(opWrite32, rg.desc+16*i, uint32(st.arena(1<<20, 1)))
	case 4:
		if st.chance(0.5) {
			put(opWrite32, rg.desc+16*i+8, st.r.Uint32N(1<<20))
		} else if st.wrong() {
			put(opWrite32, rg.desc+16*i+4, st.value())
		}
	case 5:
		put(opWrite16, rg.desc+16*i+12, st.r.Uint32N(4))
	case 6:
		put(opWrite16, rg.desc+16*i+14, st.r.Uint32N(rg.size+1))
	case 7:
		put(opWrite16, rg.avail+uint64(2*st.r.IntN(2)), st.value())
	case 8: // what is the device's to write: indices, flags, entries
		put(opWrite16, rg.used+uint64(2*st.r.Uint32N(4*rg.size+3)), st.value())
	case 9:
		put(opWrite16, rg.avail+4+2*uint64(rg.size), st.value()) // used_event
	}
}

// Ports that end the machine when they are written to: that is no harm, but the end of the test.
var deadly = [...][2]uint32{{0x64, 0x64}, {0x505, 0x505}, {0x600, 0x601}, {0xcf9, 0xcf9}}

// StormPorts has both vCPUs do harm to what is on I/O ports, and to where nothing is.
func (g *Guest) StormPorts(r interface {
	IntN(int) int
	Uint32() uint32
}) error {
	var s [CPUs]script
	for cpu := range s {
		for range 20 + r.IntN(80) {
			ports := [...]uint32{0x3f8 + uint32(r.IntN(8)), 0x60 + uint32(r.IntN(5)), 0x3f8, uint32(r.IntN(0x10000)), 0x20, 0x40 + uint32(r.IntN(4)), 0x61, 0x70, 0x71, 0xcf8, 0x504, 0x5ff, 0xffff}
			port := ports[r.IntN(len(ports))]
			o := op{opOut8 + kind(r.IntN(int(opInString-opOut8)+1)), port, r.Uint32(), 0}
			switch o.kind {
			case opOutString:
				o.hi = uint32(1 + r.IntN(256))
			case opInString:
				o.lo, o.hi = uint32(4<<20+r.IntN(1<<20)), uint32(1+r.IntN(256))
			}
			if writes(o.kind) && touches(port, deadly[:]) {
				o = op{opOut8, 0x60, r.Uint32(), 0}
			}
			s[cpu] = append(s[cpu], o)
		}
	}
	return g.both(s[0], s[1], nil)
}

func writes(k kind) bool { return k <= opOut32 || k == opOutString }

// touches says whether an access of up to four ports from port on reaches one of the ranges.
func touches(port uint32, ranges [][2]uint32) bool {
	for _, r := range ranges {
		if port+3 >= r[0] && port <= r[1] {
			return true
		}
	}
	return false
}
