// Package task is what the benchmarks and their guest have agreed on: what the guest is told on its kernel's command line, what it
// answers on COM1, and what data look like.
//
// It must import next to nothing: how fast the guest's program starts is part of what is measured.
package task

import (
	"fmt"
	"strconv"
	"strings"
)

// Works, by what they need. A work's time is from its first operation to its last.
const (
	Boot = "boot" // nothing beyond Booted

	BlockRead  = "block-read" // the second drive, past the page cache
	BlockWrite = "block-write"

	FileRead   = "file-read"   // DataFile of the share Tag, with cold caches
	FileWrite  = "file-write"  // OutFile
	FileCreate = "file-create" // Count small files in a new folder
	FileStat   = "file-stat"   // those of FilesDir, with cold caches
	FileUnlink = "file-unlink" // those of FilesDir
	WalkCold   = "walk-cold"   // lstat of all that is in TreeDir
	WalkWarm   = "walk-warm"   // once more, at once

	StreamSend = "stream-send" // a connection to the host
	StreamRecv = "stream-recv"
	StreamTrip = "stream-trip" // Count times a byte there and back
	PacketSend = "packet-send" // Count UDP packets of PacketBytes
	PacketRecv = "packet-recv"
)

// What both sides know by name.
const (
	// Booted is the first byte that a guest sends: its user space runs.
	Booted = '\a'
	// Prefix begins each line of the guest's; what else comes is the kernel's.
	Prefix = "bench: "
	// Done and Failed begin the last line.
	Done, Failed = "done", "failed "

	Tag      = "bench"
	DataFile = "data"
	OutFile  = "out"
	FilesDir = "files" // with the round's number behind
	TreeDir  = "tree"

	Port        = 4711
	HostIP      = "172.31.255.1"
	HostCID     = 2
	PacketBytes = 64
	// Window is how many packets are sent before one is waited for.
	Window = 32
	// StreamChunk is how much a stream's ends read and write at a time.
	StreamChunk = 64 << 10
	// SmallFile is what a small file holds, in bytes.
	SmallFile = 100
)

// GuestIP is the guest's address in HostIP's network of 4.
func GuestIP() [4]byte { return [4]byte{172, 31, 255, 2} }

// Task is a work and its size.
type Task struct {
	Work string
	// Rounds is how often it is done; the guest tells the time of each.
	Rounds int
	// Bytes is the size of the drive, the file or the stream, a power of two.
	Bytes int
	// Block is the size of an operation, in bytes; Random whether they go back and forth, of which a round does Count then.
	Block  int
	Random bool
	// Count is the number of operations of a round, where Bytes and Block don't say it.
	Count int
	// Depth is how many operations are under way at a time, for each of the Readers.
	Depth int
	// Readers is how many threads share a round's random operations on a drive, each on a CPU of its own as far as there are any; 0 is 1.
	Readers int
	// first is the number of the first operation, where others do those before it.
	first int
	// Vsock has a stream go over the VM's sockets, not over its network.
	Vsock bool
}

// words are the task's fields by their names on the command line. The kernel hands words that it does not know, and that have an
// =, to PID 1 as its environment.
func (t *Task) words() map[string]any {
	return map[string]any{
		"bench_work": &t.Work, "bench_rounds": &t.Rounds, "bench_bytes": &t.Bytes, "bench_block": &t.Block, "bench_random": &t.Random,
		"bench_count": &t.Count, "bench_depth": &t.Depth, "bench_readers": &t.Readers, "bench_vsock": &t.Vsock,
	}
}

// CommandLine is the task as a part of a kernel's command line.
func (t Task) CommandLine() string {
	var words []string
	for name, field := range t.words() {
		switch v := field.(type) {
		case *string:
			words = append(words, name+"="+*v)
		case *int:
			words = append(words, name+"="+strconv.Itoa(*v))
		case *bool:
			words = append(words, name+"="+strconv.FormatBool(*v))
		}
	}
	return strings.Join(words, " ")
}

// Parse reads a task by the values of its words.
func Parse(value func(name string) string) (t Task, err error) {
	for name, field := range t.words() {
		s := value(name)
		var bad error
		switch v := field.(type) {
		case *string:
			*v = s
		case *int:
			*v, bad = strconv.Atoi(s)
		case *bool:
			*v, bad = strconv.ParseBool(s)
		}
		if bad != nil {
			return Task{}, fmt.Errorf("%s: %w", name, bad)
		}
	}
	return t, nil
}

// Operations is the number of operations of a round on a drive or a file.
func (t Task) Operations() int {
	if t.Random {
		return t.Count
	}
	return t.Bytes / t.Block
}

// Offset is where the i-th of them is. The random ones are all different: steps of an odd number meet every block of a power of two.
func (t Task) Offset(i int) int {
	if t.Random {
		const odd = 40503
		i = (t.first + i) * odd & (t.Bytes/t.Block - 1)
	}
	return i * t.Block
}

// Share is what the i-th of the Readers does of a round.
func (t Task) Share(i int) Task {
	n := t.Count / t.Readers
	t.first = i * n
	if i == t.Readers-1 {
		n = t.Count - t.first
	}
	t.Count, t.Readers = n, 1
	return t
}
