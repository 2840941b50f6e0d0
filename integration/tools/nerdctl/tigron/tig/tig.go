// Package tig stands in for a package of nerdctl's test framework, which no module proxy serves. nerdctl's program links a
// helper of its tests that names the type below and that is never called. It must never do anything.
package tig

// T is what that helper calls of a *testing.T.
type T interface {
	Log(args ...any)
	FailNow()
}
