package shim

import (
	"context"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

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
	return errgrpc.ToGRPC(&rpcError{oneLine(message), class})
}

// agentError keeps of an error of the agent's its class and a text that can harm nobody: containerd closes the connection
// to a shim that sends a long message, and takes the shim for dead.
func agentError(err error) error {
	native := err
	if !errors.Is(err, context.Canceled) { // the caller's doing, which ToNative would not know
		native = errgrpc.ToNative(err)
	}
	return &rpcError{oneLine(native.Error()), errdefs.Resolve(native)}
}

// maxErrorBytes bounds the text of an error that goes to containerd.
const maxErrorBytes = 4 << 10

// oneLine makes of a text a single line of printable characters, of at most maxErrorBytes.
func oneLine(text string) string {
	const more = " [...]"
	text, cut := text[:min(len(text), 2*maxErrorBytes)], len(text) > 2*maxErrorBytes // before any work is spent on it
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r) || r == utf8.RuneError:
			return '?'
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if cut || len(text) > maxErrorBytes {
		text = text[:min(len(text), maxErrorBytes-len(more))]
		text = strings.ToValidUTF8(text, "") + more // a character may have been cut in two
	}
	return text
}

type rpcError struct {
	message string
	class   error
}

func (e *rpcError) Error() string { return e.message }
func (e *rpcError) Unwrap() error { return e.class }
