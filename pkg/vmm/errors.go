package vmm

import "github.com/containerd/errdefs"

// inputError says that a field of the description names something of the host that cannot be used. It is of the class
// errdefs.ErrInvalidArgument. field is empty where err names it.
type inputError struct {
	field string
	err   error
}

func (e *inputError) Error() string {
	if e.field == "" {
		return e.err.Error()
	}
	return e.field + ": " + e.err.Error()
}

func (e *inputError) Unwrap() []error { return []error{e.err, errdefs.ErrInvalidArgument} }
