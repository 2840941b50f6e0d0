package config

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// FieldError says which field holds what it must not hold. It is of the class errdefs.ErrInvalidArgument.
type FieldError struct {
	// Field is the JSON name, with the part's before it where the part is not obvious: "drives/rootfs/path_on_host".
	Field string
	// Value as it was given, printed and shortened; empty if the field was left out.
	Value string
	// Want says what is allowed.
	Want string
}

// Error names the field, the value and what is allowed, in one line.
func (e *FieldError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("%s is missing: want %s", e.Field, e.Want)
	}
	return fmt.Sprintf("%s is %s: want %s", e.Field, e.Value, e.Want)
}

// Unwrap gives the class.
func (e *FieldError) Unwrap() error { return errdefs.ErrInvalidArgument }

// maxShown bounds how much of a bad value an error repeats, in bytes.
const maxShown = 64

// BadString is the error for a string, which it shortens; an empty one counts as missing.
func BadString(field, value, want string) error {
	switch {
	case value == "":
	case len(value) > maxShown:
		value = fmt.Sprintf("%q... (%d bytes)", value[:maxShown], len(value))
	default:
		value = fmt.Sprintf("%q", value)
	}
	return &FieldError{Field: field, Value: value, Want: want}
}

// UnknownID is the error for a field that names a part which the microVM has not: what, as in "drive".
func UnknownID(field, id, what string) error {
	return BadString(field, id, "the id of a "+what+" of this microVM")
}

// bad is the error for any other value.
func bad(field string, value any, want string) error {
	return &FieldError{Field: field, Value: fmt.Sprint(value), Want: want}
}
