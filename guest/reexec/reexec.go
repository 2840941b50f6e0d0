// Package reexec makes a binary that imports it able to launch containers: libcontainer runs the binary again, as
// "<binary> init", in the container's namespaces, and that run must never reach main.
//
// It acts by being imported, as libcontainer demands, and imports nothing else, which is on purpose: Go initialises packages
// in the order of their dependencies and then of their paths, so a container's init process gets here before the packages of
// the agent's protocol have been initialised, whose work (registering messages) it would only throw away.
package reexec

import (
	"os"

	_ "github.com/opencontainers/cgroups/devices" // without it, libcontainer cannot enforce device rules
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters the namespaces before Go's runtime has threads
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init() // does not return
	}
}
