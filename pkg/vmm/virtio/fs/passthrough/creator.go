package passthrough

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maxCreators is how many inodes are created at once.
const maxCreators = 4

// creators are threads that make inodes as another user and without a umask, which the guest's kernel has applied already.
// Credentials of file access and, once unshared, the umask belong to a thread: nothing else in the process sees them change.
// Such a thread serves nothing else and dies with its goroutine. The first one is started when it is needed.
type creators struct {
	jobs chan *creation
	quit chan struct{}

	mu sync.Mutex
	n  int
}

type creation struct {
	uid, gid uint32
	do       func() error
	done     chan error
}

func newCreators() *creators {
	return &creators{jobs: make(chan *creation), quit: make(chan struct{})}
}

func (c *creators) stop() { close(c.quit) }

// as runs do, which makes an inode, with the user and group that it shall belong to. It waits for a thread no longer than
// other creations take.
func (c *creators) as(who *fuse.InHeader, do func() error) error {
	j := &creation{uid: who.Uid, gid: who.Gid, do: do, done: make(chan error, 1)}
	select {
	case c.jobs <- j:
		return <-j.done
	default:
	}
	c.mu.Lock()
	if c.n < maxCreators {
		c.n++
		go c.thread()
	}
	c.mu.Unlock()
	select {
	case c.jobs <- j:
		return <-j.done
	case <-c.quit:
		return unix.ESHUTDOWN
	}
}

func (c *creators) thread() {
	// Never unlocked: the thread ends with the goroutine.
	runtime.LockOSThread()
	id, err := newIdentity()
	for {
		select {
		case j := <-c.jobs:
			if err != nil {
				j.done <- err
				continue
			}
			j.done <- id.run(j)
		case <-c.quit:
			return
		}
	}
}

// identity is a thread's own.
type identity struct {
	uid, gid int
	caps     [2]unix.CapUserData
}

func newIdentity() (*identity, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("creating thread: unshare(CLONE_FS): %w", err)
	}
	unix.Umask(0)
	id := &identity{}
	id.uid, _ = unix.SetfsuidRetUid(-1)
	id.gid, _ = unix.SetfsgidRetGid(-1)
	if err := unix.Capget(capHeader(), &id.caps[0]); err != nil {
		return nil, fmt.Errorf("creating thread: capget: %w", err)
	}
	return id, nil
}

func capHeader() *unix.CapUserHeader {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
}

func (id *identity) run(j *creation) error {
	if int(j.uid) == id.uid && int(j.gid) == id.gid {
		return j.do()
	}
	defer id.restore()
	if err := id.become(int(j.uid), int(j.gid)); err != nil {
		return err
	}
	return j.do()
}

// become sets the owner of what the thread creates. The guest's kernel has checked what its users may do, and knows their
// supplementary groups: the thread keeps its capabilities, which the change from user 0 takes.
func (id *identity) become(uid, gid int) error {
	_, _ = unix.SetfsgidRetGid(gid)
	_, _ = unix.SetfsuidRetUid(uid)
	// The calls return the id before, never an error; an invalid id only asks.
	nowGID, _ := unix.SetfsgidRetGid(-1)
	nowUID, _ := unix.SetfsuidRetUid(-1)
	if nowUID != uid || nowGID != gid {
		return unix.EPERM
	}
	return unix.Capset(capHeader(), &id.caps[0])
}

func (id *identity) restore() {
	// From any user back to 0 always works; capabilities come back with it.
	_, _ = unix.SetfsuidRetUid(id.uid)
	_, _ = unix.SetfsgidRetGid(id.gid)
}
