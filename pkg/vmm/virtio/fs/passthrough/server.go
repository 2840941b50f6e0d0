// Package passthrough is a FUSE server for one host folder: what virtio-fs (virtio 1.2 §5.11) shares with a guest. The
// wire format of most requests is go-fuse's business; reads and writes go straight between guest memory and the file.
//
// The guest is hostile, and the folder must hold it. So the server never hands a guest's string to the host's path walk:
// each live inode is an O_PATH descriptor, a name is one component looked up below such a descriptor without following
// symbolic links, and a file is opened through its own descriptor in /proc/self/fd. Nothing but regular files and
// directories is ever opened; devices, fifos and sockets are the guest kernel's own business. All tables are bounded.
//
// The process should be root in its user namespace, with the CAP_CHOWN, CAP_DAC_*, CAP_FOWNER, CAP_FSETID, CAP_MKNOD,
// CAP_SETUID and CAP_SETGID that this implies, and needs /proc. It must not change its credentials, umask or root
// directory behind a Server's back.
package passthrough

import (
	"fmt"
	"io"
	"log"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// MaxIO is the largest read or write, in bytes.
	MaxIO = 1 << 20
	// Validity is how long a guest may believe a name or an attribute: the longest that a change made on the host stays
	// unseen.
	Validity = time.Second

	// maxBackground is how many asynchronous requests (readahead) a guest may have in flight.
	maxBackground = 64
	// reservedFiles are file descriptors that all shares leave to the rest of the process: 1023 of vsock connections, 32 of
	// the API's, some hundred of drives, queues and vCPUs, and a margin.
	reservedFiles = 2048
	// requestFiles are those that a share's requests hold while they are in service, beside its tables.
	requestFiles = 256
	// minFiles is the least that a share can live with.
	minFiles = 512
	// maxNodes and maxHandles bound a share even where the process may open more files: each inode stays in the memory of
	// the host's kernel as long as the guest pleases.
	maxNodes   = 128 << 10
	maxHandles = 64 << 10
)

// Config is what a server shares.
type Config struct {
	// Root is the folder.
	Root string
	// ReadOnly refuses every change with EROFS.
	ReadOnly bool
	// Shares is the number of servers, this one included, among which the process's limit of open files is divided. 0 is 1.
	Shares int
	// MaxNodes and MaxHandles bound live inodes and open files; beyond them the guest gets ENFILE. 0: what the process's
	// limit of open files leaves room for.
	MaxNodes, MaxHandles int
}

// Server serves one guest. Its methods are safe for concurrent use.
type Server struct {
	cfg      Config
	root     int
	creators *creators
	panics   atomic.Int64

	mu     sync.RWMutex
	tree   *tree // nil between a guest's DESTROY and its next INIT
	closed bool
}

// New opens the folder. It takes its bounds from the process's limit of open files, which Go raises to the hard limit by
// itself.
func New(cfg Config) (*Server, error) {
	if err := cfg.setLimits(); err != nil {
		return nil, err
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs("/proc/self/fd", &sfs); err != nil || sfs.Type != unix.PROC_SUPER_MAGIC {
		return nil, fmt.Errorf("shared folder %q: /proc/self/fd is not procfs (%v)", cfg.Root, err)
	}
	root, err := unix.Open(cfg.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("shared folder %q: %w", cfg.Root, err)
	}
	return &Server{cfg: cfg, root: root, creators: newCreators()}, nil
}

func (c *Config) setLimits() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("shared folder %q: RLIMIT_NOFILE: %w", c.Root, err)
	}
	nodes, handles, err := limits(lim.Cur, max(c.Shares, 1))
	if err != nil {
		return fmt.Errorf("shared folder %q: %w", c.Root, err)
	}
	if c.MaxNodes == 0 {
		c.MaxNodes = nodes
	}
	if c.MaxHandles == 0 {
		c.MaxHandles = handles
	}
	return nil
}

// limits divides the process's limit of open files. An open file can take two descriptors: the guest may have forgotten its
// inode.
func limits(files uint64, shares int) (nodes, handles int, err error) {
	if least := uint64(reservedFiles + shares*(requestFiles+minFiles)); files < least {
		return 0, 0, fmt.Errorf("RLIMIT_NOFILE is %d: want %d or more for %d shares", files, least, shares)
	}
	free := int(min(files, 1<<32)-reservedFiles)/shares - requestFiles
	handles = min(free/8, maxHandles)
	return min(free-2*handles, maxNodes), handles, nil
}

// Close forgets all state. Requests still running end on their own, with errors.
func (s *Server) Close() error {
	s.mu.Lock()
	closed, old := s.closed, s.tree
	s.closed, s.tree = true, nil
	s.mu.Unlock()
	if closed {
		return nil
	}
	if old != nil {
		old.drop()
	}
	s.creators.stop()
	if err := unix.Close(s.root); err != nil {
		return fmt.Errorf("shared folder %q: close: %w", s.cfg.Root, err)
	}
	return nil
}

// Forget drops what the guest knows, as after a reset of its device: it must start with INIT.
func (s *Server) Forget() { s.install(nil) }

// Panics counts requests that ended in a panic, each answered with EIO: a bug of this package, and 0 without one.
func (s *Server) Panics() int64 { return s.panics.Load() }

// install makes t the guest's view and drops the one before; false after Close.
func (s *Server) install(t *tree) bool {
	s.mu.Lock()
	old := s.tree
	ok := !s.closed
	if ok {
		s.tree = t
	}
	s.mu.Unlock()
	if ok && old != nil {
		old.drop()
	}
	return ok
}

// get returns the guest's view, or nil.
func (s *Server) get() *tree {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tree
}

func (s *Server) newTree() (*tree, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, unix.ESHUTDOWN
	}
	t, err := newTree(&s.cfg, s.root, s.creators)
	if err != nil {
		return nil, err
	}
	t.wire = fuse.NewProtocolServer(t, &fuse.MountOptions{
		MaxWrite:             MaxIO,
		MaxBackground:        maxBackground,
		EnableSymlinkCaching: true, // an inode's target never changes
		// What a guest can write about goes nowhere: it must not fill the host's log.
		Logger: log.New(io.Discard, "", 0),
		PanicHandler: func(any) fuse.Status {
			s.panics.Add(1)
			return fuse.EIO
		},
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ASYNC_DIO | fuse.CAP_HANDLE_KILLPRIV_V2 |
			fuse.CAP_SUBMOUNTS,
		// Neither FUSE_POSIX_ACL, for the reason at aclPrefix, nor FUSE_DONT_MASK, which serves nothing else.
		// Not FUSE_POSIX_LOCKS and FUSE_FLOCK_LOCKS: one guest per share, so its kernel's own locks are enough.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT,
	})
	return t, nil
}
