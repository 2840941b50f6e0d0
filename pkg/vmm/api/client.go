package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

const (
	// callTimeout bounds a call whose context has no deadline. It is longer than anything the server may take.
	callTimeout = 75 * time.Second
	// maxReply bounds what is read of an answer: the VMM may have been taken over by its guest.
	maxReply = 1 << 20
	// maxFault bounds a fault message, in bytes.
	maxFault = 2 << 10
)

// Client drives a microVM over its API. The shim does without it: a description at the start is all that it has to say.
// Its methods are safe for concurrent use.
type Client struct{ http *http.Client }

// NewClient makes a client for the API on a Unix socket. Nothing is dialled before the first call.
func NewClient(socketPath string) *Client {
	return NewClientDial(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socketPath)
	})
}

// NewClientDial makes a client that connects by a function of the caller's.
func NewClientDial(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConns:           1,
		IdleConnTimeout:        5 * time.Second, // below the server's
		MaxResponseHeaderBytes: maxHeaderBytes,
		DisableCompression:     true,
	}}}
}

// Close drops the idle connection. The client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is a refusal by the server. Its class is errdefs.ErrInvalidArgument for 400 and 413, else ErrUnavailable.
type Error struct {
	Method, Path string
	Status       int
	// Fault is the server's fault_message, in one line.
	Fault string
}

// Error names the request and has the server's message.
func (e *Error) Error() string {
	if e.Fault == "" {
		return fmt.Sprintf("vmm: %s %s: HTTP status %d", e.Method, e.Path, e.Status)
	}
	return fmt.Sprintf("vmm: %s %s: %s", e.Method, e.Path, e.Fault)
}

// Unwrap gives the class.
func (e *Error) Unwrap() error {
	if e.Status == http.StatusBadRequest || e.Status == http.StatusRequestEntityTooLarge {
		return errdefs.ErrInvalidArgument
	}
	return errdefs.ErrUnavailable
}

// PutMachineConfig sets the size of the VM.
func (c *Client) PutMachineConfig(ctx context.Context, m config.Machine) error {
	return c.call(ctx, http.MethodPut, "/machine-config", m, nil)
}

// PutBootSource sets the kernel.
func (c *Client) PutBootSource(ctx context.Context, b config.BootSource) error {
	return c.call(ctx, http.MethodPut, "/boot-source", b, nil)
}

// PutDrive adds or replaces a drive.
func (c *Client) PutDrive(ctx context.Context, d config.Drive) error {
	return c.call(ctx, http.MethodPut, "/drives/"+url.PathEscape(d.DriveID), d, nil)
}

// PatchDrive changes a drive of the running VM.
func (c *Client) PatchDrive(ctx context.Context, u config.DriveUpdate) error {
	return c.call(ctx, http.MethodPatch, "/drives/"+url.PathEscape(u.DriveID), u, nil)
}

// PutFilesystem adds or replaces a virtio-fs share.
func (c *Client) PutFilesystem(ctx context.Context, f config.Filesystem) error {
	return c.call(ctx, http.MethodPut, "/filesystems/"+url.PathEscape(f.FSID), f, nil)
}

// PutNetworkInterface adds or replaces a network interface.
func (c *Client) PutNetworkInterface(ctx context.Context, n config.NetworkInterface) error {
	return c.call(ctx, http.MethodPut, "/network-interfaces/"+url.PathEscape(n.IfaceID), n, nil)
}

// PatchNetworkInterface changes a network interface of the running VM.
func (c *Client) PatchNetworkInterface(ctx context.Context, u config.NetworkInterfaceUpdate) error {
	return c.call(ctx, http.MethodPatch, "/network-interfaces/"+url.PathEscape(u.IfaceID), u, nil)
}

// PutVsock gives the VM a vsock device.
func (c *Client) PutVsock(ctx context.Context, v config.Vsock) error {
	return c.call(ctx, http.MethodPut, "/vsock", v, nil)
}

// PutEntropy gives the VM a random number generator.
func (c *Client) PutEntropy(ctx context.Context, e config.Entropy) error {
	return c.call(ctx, http.MethodPut, "/entropy", e, nil)
}

// PutSerial sets where the serial console's output goes.
func (c *Client) PutSerial(ctx context.Context, s config.Serial) error {
	return c.call(ctx, http.MethodPut, "/serial", s, nil)
}

// PutLogger sets where the VMM's log goes, and its form.
func (c *Client) PutLogger(ctx context.Context, l config.Logger) error {
	return c.call(ctx, http.MethodPut, "/logger", l, nil)
}

// PutMetrics sets where the VMM's metrics go.
func (c *Client) PutMetrics(ctx context.Context, m config.Metrics) error {
	return c.call(ctx, http.MethodPut, "/metrics", m, nil)
}

// FlushMetrics has a line of metrics written now.
func (c *Client) FlushMetrics(ctx context.Context) error {
	return c.call(ctx, http.MethodPut, "/actions", action{"FlushMetrics"}, nil)
}

// Start boots the VM; it returns when the vCPUs run.
func (c *Client) Start(ctx context.Context) error {
	return c.call(ctx, http.MethodPut, "/actions", action{"InstanceStart"}, nil)
}

// Pause stops the vCPUs; it returns when they stand still.
func (c *Client) Pause(ctx context.Context) error {
	return c.call(ctx, http.MethodPatch, "/vm", runState{"Paused"}, nil)
}

// Resume lets the vCPUs run again.
func (c *Client) Resume(ctx context.Context) error {
	return c.call(ctx, http.MethodPatch, "/vm", runState{"Resumed"}, nil)
}

// Info asks who the VM is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var i Info
	err := c.call(ctx, http.MethodGet, "/", nil, &i)
	return i, err
}

// State asks where the VM is in its life.
func (c *Client) State(ctx context.Context) (config.State, error) {
	i, err := c.Info(ctx)
	return i.State, err
}

// VMConfig asks for the VM's description.
func (c *Client) VMConfig(ctx context.Context) (config.VM, error) {
	var vm config.VM
	err := c.call(ctx, http.MethodGet, "/vm/config", nil, &vm)
	return vm, err
}

func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	if err := c.roundTrip(ctx, method, path, body, answer); err != nil {
		if _, ok := err.(*Error); ok {
			return err
		}
		return fmt.Errorf("vmm: %s %s: %w", method, path, err)
	}
	return nil
}

func (c *Client) roundTrip(ctx context.Context, method, path string, body, answer any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, r)
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return unwrapURL(err)
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	switch {
	case err != nil:
		return fmt.Errorf("reading the answer: %w", err)
	case len(reply) > maxReply:
		return fmt.Errorf("the answer is larger than the %d bytes allowed", maxReply)
	case resp.StatusCode/100 != 2:
		var f fault
		_ = json.Unmarshal(reply, &f) // no fault message: the status must do
		return &Error{Method: method, Path: path, Status: resp.StatusCode, Fault: oneLine(f.Message)}
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(reply, answer); err != nil {
		return fmt.Errorf("the answer is no such document: %w", err)
	}
	return nil
}

// unwrapURL takes off what net/http adds: the made-up address.
func unwrapURL(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	return err
}

// oneLine makes a message from the VMM fit for logs and terminals.
func oneLine(s string) string {
	if len(s) > maxFault {
		s = s[:maxFault] + "..."
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
