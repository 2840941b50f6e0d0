package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const shimName = "containerd-shim-fc-v2"

// checkContainerd finds the containerd that listens, by its socket, and looks at that very process: its version, and the PATH in which
// it looks for shims.
func (c *checkup) checkContainerd(ctx context.Context) {
	const about = "containerd"
	if _, err := os.Stat(c.path(c.address)); err != nil {
		c.add(doubt, about, fmt.Sprintf("%s: %v", c.address, reason(err)), "start containerd, or say by --address where its socket is")
		return
	}
	pid, err := c.peer(c.path(c.address))
	if err != nil {
		c.add(failure, about, fmt.Sprintf("%s: %v", c.address, err), "start containerd: nobody answers at its socket")
		return
	}
	proc := c.path("proc", strconv.Itoa(pid))
	exe, err := os.Readlink(filepath.Join(proc, "exe"))
	if err != nil {
		c.add(doubt, about, fmt.Sprintf("its process, pid %d, cannot be looked at: %v", pid, reason(err)), "see by hand that it is version 2.0 or newer")
		return
	}
	c.checkVersion(ctx, exe, filepath.Join(proc, "exe"))
	environ, err := os.ReadFile(filepath.Join(proc, "environ"))
	if err != nil {
		c.add(doubt, "shim", fmt.Sprintf("the PATH of containerd, pid %d, cannot be read: %v", pid, reason(err)), "see by hand that the shim is in it")
		return
	}
	c.checkPath(string(environ), filepath.Dir(exe))
}

var containerdVersion = regexp.MustCompile(`^containerd \S+ v?(\d+)\.\S*`)

func (c *checkup) checkVersion(ctx context.Context, exe, program string) {
	line, err := c.run(ctx, program, "--version")
	m := containerdVersion.FindStringSubmatch(line)
	if err != nil || m == nil {
		c.add(doubt, "containerd", fmt.Sprintf("%s does not tell its version (%q, %v)", exe, clip(line), err), "see by hand that it is 2.0 or newer")
		return
	}
	v := fine
	if major, err := strconv.Atoi(m[1]); err != nil || major < 2 {
		v = failure
	}
	c.add(v, "containerd", fmt.Sprintf("%s at %s", clip(strings.TrimPrefix(m[0], "containerd ")), c.address), "install containerd 2.0 or newer: this shim speaks version 3 of its task API")
}

// checkPath looks for the shim as containerd does: in PATH, then beside containerd.
func (c *checkup) checkPath(environ, beside string) {
	const about = "shim"
	path := ""
	for v := range strings.SplitSeq(environ, "\x00") {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	for _, dir := range append(filepath.SplitList(path), beside) {
		name := c.path(dir, shimName)
		fi, err := os.Stat(name)
		if err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
			continue
		}
		found := filepath.Join(dir, shimName)
		if self, err := os.Stat(c.self); err == nil && !os.SameFile(fi, self) {
			c.add(doubt, about, fmt.Sprintf("containerd will use %s, not %s", found, c.self), "remove one of the two, or run `"+found+" check`")
			return
		}
		c.add(fine, about, "containerd finds it: "+found, "")
		return
	}
	c.add(failure, about, fmt.Sprintf("%s is neither in containerd's PATH (%s) nor beside it (%s)", shimName, path, beside),
		"copy it, or make a link to it, there: for example ln -s "+c.self+" "+filepath.Join(beside, shimName))
}

// peerOf is the process that listens at a Unix socket, if it answers.
func peerOf(socket string) (pid int, err error) {
	conn, err := net.DialTimeout("unix", socket, checkTimeout)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		if errors.Is(err, fs.ErrPermission) {
			return 0, fs.ErrPermission
		}
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}
