package shim

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
)

const (
	// dismissTimeout bounds all that is said to a shim in dismissShim.
	dismissTimeout = 3 * time.Second
	// leaveTimeout is how long a shim may then take to leave. It may have another container, and stay.
	leaveTimeout = time.Second
)

// dismissShim ends the shim whose address is in the bundle, if it lives and has no other container. Its container's VM must
// have been killed before: so the task ends at once, with no help of the guest's, and Delete and Shutdown are what containerd
// would have called in the end. A shim that has another container keeps it, and stays.
func dismissShim(ctx context.Context, bundle, id string) error {
	address, err := shim.ReadAddress(filepath.Join(bundle, addressFile))
	if err != nil {
		return nil // never started
	}
	conn, err := shim.AnonDialer(address, dismissTimeout)
	if err != nil {
		return nil // gone, as usual
	}
	gone := make(chan struct{})
	client := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(gone) }))
	defer client.Close()
	tasks := taskapi.NewTTRPCTaskClient(client)
	ctx, cancel := context.WithTimeoutCause(ctx, dismissTimeout, fmt.Errorf("%s does not answer within %v", address, dismissTimeout))
	defer cancel()
	_, err = tasks.Wait(ctx, &taskapi.WaitRequest{ID: id})
	if err == nil {
		_, err = tasks.Delete(ctx, &taskapi.DeleteRequest{ID: id})
	}
	if err == nil || errdefs.IsNotFound(errgrpc.ToNative(err)) {
		_, err = tasks.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	}
	switch {
	case errors.Is(err, ttrpc.ErrClosed):
		return nil // it was leaving
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return errgrpc.ToNative(err)
	}
	select {
	case <-gone:
	case <-time.After(leaveTimeout):
	case <-ctx.Done():
	}
	return nil
}
