package shim

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// keptFiles are descriptors of what the kernel destroys slowly, for it waits for RCU, several times: KVM's VM and the TAPs. fc-vmm has the same
// (config.StartAnswer). As long as the shim has them, fc-vmm's end does not take that time; it passes when the shim closes them, beside
// other things. They are no os.File: Go would have itself woken for every frame on a TAP.
type keptFiles []int

// keptTimeout bounds the wait for the TAPs.
const keptTimeout = 2 * time.Second

// takeFiles gives what has come with a message.
func takeFiles(rights []byte) (kept keptFiles) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			kept = append(kept, fds...)
		}
	}
	return kept
}

// close returns when the TAPs have gone: the next VM in their network namespace has some of the same names. KVM's VM may be there a little
// longer; only the removal of its cgroup waits for that.
func (k keptFiles) close() {
	var others sync.WaitGroup
	for _, fd := range k {
		if name, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd)); name == "anon_inode:kvm-vm" {
			go unix.Close(fd)
			continue
		}
		others.Go(func() { unix.Close(fd) })
	}
	gone := make(chan struct{})
	go func() { others.Wait(); close(gone) }()
	t := time.NewTimer(keptTimeout)
	defer t.Stop()
	select {
	case <-gone:
	case <-t.C:
		log.L.Warnf("a VM's TAPs are still there %v after its end", keptTimeout)
	}
}
