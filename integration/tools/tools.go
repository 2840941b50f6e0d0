//go:build tools

// Package tools pins the programs that the tests and the demo drive, in a module of its own so that the product's
// dependencies stay few. scripts/tools.sh builds them.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "github.com/opencontainers/runc"
)
