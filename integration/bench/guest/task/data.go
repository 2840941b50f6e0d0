package task

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Page is the unit in which data are marked, in bytes. Each page begins with a mark of 8 bytes, its number and a seed; the rest is
// filler. Marks are cheap enough to be set and looked at while time is taken; they tell data that are old, missing or elsewhere.
const Page = 4096

const filler = 0xa5

// Fill makes a buffer of whole pages ready for Mark.
func Fill(b []byte) {
	for i := range b {
		b[i] = filler
	}
}

// Mark marks a buffer of whole pages, of which the first has number page.
func Mark(b []byte, page, seed int) {
	for ; len(b) >= Page; b, page = b[Page:], page+1 {
		binary.LittleEndian.PutUint64(b, mark(page, seed))
	}
}

// CheckMarks looks at the marks alone.
func CheckMarks(b []byte, page, seed int) error {
	for ; len(b) >= Page; b, page = b[Page:], page+1 {
		if got := binary.LittleEndian.Uint64(b); got != mark(page, seed) {
			return fmt.Errorf("wrong data: page %d of seed %d is marked as %d of seed %d", page, seed, got&0xffffffff, got>>32)
		}
	}
	return nil
}

// Check looks at every byte.
func Check(b []byte, page, seed int) error {
	if err := CheckMarks(b, page, seed); err != nil {
		return err
	}
	for ; len(b) >= Page; b, page = b[Page:], page+1 {
		if bytes.Count(b[8:Page], []byte{filler}) != Page-8 {
			return fmt.Errorf("wrong data: page %d holds something else behind its mark", page)
		}
	}
	return nil
}

func mark(page, seed int) uint64 { return uint64(seed)<<32 | uint64(uint32(page)) }

// SetNumber and Number are for packets, which have a number in front.
func SetNumber(packet []byte, n int) { binary.LittleEndian.PutUint64(packet, uint64(n)) }

// Number is what SetNumber has set.
func Number(packet []byte) int { return int(binary.LittleEndian.Uint64(packet)) }
