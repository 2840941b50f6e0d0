package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// describeTimeout bounds each direction of --config-fd's conversation.
const describeTimeout = 10 * time.Second

// described tells whether the command line leads to a description.
func (s *settings) described() bool { return s.configFile != "" || s.configFD >= 0 }

// bootDescribed boots the microVM that the command line leads to a description of, if it does. machine gives what a start has led to.
func bootDescribed(server *api.Server, s *settings, machine func() *vmm.Machine) error {
	switch {
	case s.configFile != "":
		if err := bootFile(server, s.configFile); err != nil {
			return fmt.Errorf("--config-file %s: %w", s.configFile, err)
		}
	case s.configFD >= 0:
		return bootSocket(server, s.configFD, machine)
	}
	return nil
}

func bootFile(server *api.Server, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return errors.Unwrap(err) // its path is told already
	}
	defer f.Close()
	return bootFrom(server, f)
}

// bootSocket does what --config-fd says: it reads a description to the end of what the other side sends, boots, and answers with a
// config.StartAnswer. Whoever started this process then knows at once, and in full, why there is no microVM.
func bootSocket(server *api.Server, fd int, machine func() *vmm.Machine) error {
	f := os.NewFile(uintptr(fd), "config")
	c, err := net.FileConn(f)
	f.Close() // FileConn has a copy of its own
	if err != nil {
		return fmt.Errorf("--config-fd is %d: want an inherited, connected socket: %w", fd, err)
	}
	defer c.Close()
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("--config-fd is %d: want an inherited Unix socket", fd)
	}
	if err := conn.SetReadDeadline(time.Now().Add(describeTimeout)); err != nil {
		return fmt.Errorf("--config-fd %d: %w", fd, err)
	}
	err = bootFrom(server, conn)
	answer := config.StartAnswer{Invalid: errdefs.IsInvalidArgument(err)}
	if err != nil {
		answer.Fault = err.Error()
	}
	_, _ = io.Copy(io.Discard, conn) // the rest of what was too long: with that unread, a close would take the answer back
	var lent []int
	if err == nil {
		var derr error
		if lent, derr = machine().Dup(); derr != nil { // nobody depends on them
			log.L.WithError(derr).Debug("no descriptors go with the answer")
		}
	}
	sendAnswer(conn, answer, lent)
	return err
}

// sendAnswer sends an answer with descriptors, which it closes.
func sendAnswer(conn *net.UnixConn, answer config.StartAnswer, lent []int) {
	text, _ := json.Marshal(answer) // strings and bools always marshal
	_ = conn.SetWriteDeadline(time.Now().Add(describeTimeout))
	_, _, err := conn.WriteMsgUnix(text, unix.UnixRights(lent...), nil)
	if err != nil && len(lent) > 0 { // the kernel, or a security module of its, may not let them go
		_, err = conn.Write(text)
	}
	if err != nil {
		log.L.WithError(err).Warn("nobody hears how the start has ended")
	}
	for _, fd := range lent {
		unix.Close(fd)
	}
}

// bootFrom boots what a reader describes.
func bootFrom(server *api.Server, r io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(r, api.MaxConfigFile+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no whole description within %v: %w", describeTimeout, err)
	case err != nil:
		return err
	case len(text) > api.MaxConfigFile:
		return fmt.Errorf("a description is larger than %d bytes: %w", api.MaxConfigFile, errdefs.ErrInvalidArgument)
	}
	ctx := context.Background()
	if err := server.Configure(ctx, text); err != nil {
		return err
	}
	return server.Start(ctx)
}
