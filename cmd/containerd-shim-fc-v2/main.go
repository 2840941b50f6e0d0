// Command containerd-shim-fc-v2 is the containerd runtime io.containerd.fc.v2: containers in microVMs.
package main

import (
	"context"
	"os"

	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/plugin/registry"

	fcshim "github.com/fcshim/containerd-shim-fc-v2/pkg/shim"
)

// version is set by the linker.
var version = "dev"

func main() {
	// A word, where containerd passes flags first.
	if len(os.Args) > 1 && os.Args[1] == "check" {
		os.Exit(fcshim.Check(context.Background(), os.Args[2:], os.Stdout, os.Stderr))
	}
	registry.Register(fcshim.TaskPlugin())
	shim.RunShim(context.Background(), fcshim.NewManager(version), func(c *shim.Config) {
		// os/exec waits for each child (fc-vmm, the containers' processes on the host, hooks, loggers); a reaper that waits for any
		// would take their exits away.
		c.NoReaper = true
		c.NoSubreaper = true
	})
}
