package shim

import (
	"context"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
)

// UnaryServerInterceptor implements shim.TTRPCServerUnaryOptioner: it is the one place where errors become statuses.
func (s *service) UnaryServerInterceptor() ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		resp, err := method(ctx, unmarshal)
		return resp, toStatus(err)
	}
}

// toStatus gives containerd a single line and a class. Left to itself, errgrpc would send each wrapped error along, and
// clients would print them again, a line each.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	class := errdefs.Resolve(err)
	// The receiver puts the class behind the message.
	message := strings.ReplaceAll(err.Error(), ": "+class.Error(), "")
	return errgrpc.ToGRPC(&rpcError{strings.Join(strings.Fields(message), " "), class})
}

type rpcError struct {
	message string
	class   error
}

func (e *rpcError) Error() string { return e.message }
func (e *rpcError) Unwrap() error { return e.class }
