//go:build tools

// Package nerdctl pins nerdctl, in a module of its own because its release is built with another containerd than the one
// that it drives here. scripts/tools.sh builds it.
package nerdctl

import (
	_ "github.com/containerd/nerdctl/v2/cmd/nerdctl"
)
