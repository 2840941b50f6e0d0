// Command guest is PID 1 of the benchmarks' guests. It tells the host that it runs, does what the kernel's command line says, tells
// how long each round took, and waits until the host ends the VM.
//
// It talks through COM1, which every VMM has, by port I/O and without a driver: a byte costs an exit, and a kernel without a serial
// port saves its probing. It writes nothing while it measures.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

func main() {
	// /dev is there: the kernel mounts it (CONFIG_DEVTMPFS_MOUNT).
	com1, err := openCOM1()
	if err != nil {
		panic(err) // the end of PID 1 is the kernel's, which the host is shown
	}
	com1.send(string(task.Booted))
	debug.SetGCPercent(-1) // there is no garbage to speak of
	t, err := task.Parse(os.Getenv)
	if err == nil {
		err = run(t, com1)
	}
	if err != nil {
		com1.send(task.Prefix + task.Failed + err.Error() + "\n")
	} else {
		com1.send(task.Prefix + task.Done + "\n")
	}
	for {
		_ = unix.Pause()
	}
}

// run does a task. What a round needs is made before its time is taken, and what it has read is looked at after.
func run(t task.Task, com1 *com1) error {
	var round func(n int) (time.Duration, error)
	var err error
	switch t.Work {
	case task.Boot:
		return nil
	case task.BlockRead, task.BlockWrite:
		round, err = blockWork(t)
	case task.FileRead, task.FileWrite, task.FileCreate, task.FileStat, task.FileUnlink, task.WalkCold, task.WalkWarm:
		round, err = fileWork(t)
	case task.StreamSend, task.StreamRecv, task.StreamTrip:
		round, err = streamWork(t)
	case task.PacketSend, task.PacketRecv:
		round, err = packetWork(t)
	default:
		err = errors.New("no such work")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", t.Work, err)
	}
	for n := range t.Rounds {
		took, err := round(n)
		if err != nil {
			return fmt.Errorf("%s, round %d: %w", t.Work, n, err)
		}
		com1.send(fmt.Sprintf("%s%d\n", task.Prefix, took.Nanoseconds()))
	}
	return nil
}

// com1 is the transmitter of a serial port.
type com1 struct{ fd int }

const (
	portTHR = 0x3f8
	portLSR = portTHR + 5
	lsrTHRE = 1 << 5 // the transmitter takes a byte
)

func openCOM1() (*com1, error) {
	fd, err := unix.Open("/dev/port", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/port: %w", err)
	}
	return &com1{fd}, nil
}

// send waits for the transmitter before every byte but the very first: after a reset it is empty.
func (c *com1) send(s string) {
	var b [1]byte
	for i := range len(s) {
		for s[i] != task.Booted {
			if _, err := unix.Pread(c.fd, b[:], portLSR); err != nil || b[0]&lsrTHRE != 0 {
				break
			}
		}
		b[0] = s[i]
		_, _ = unix.Pwrite(c.fd, b[:], portTHR)
	}
}
