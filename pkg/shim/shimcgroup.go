package shim

import (
	"fmt"
	"strings"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hostcgroup"
)

// joinShimCgroup puts a serving shim into the cgroup that a client asks for by ShimCgroup, an option of runc's that containerd's
// client has a function for whatever the runtime is. As with runc, the cgroup must be there.
func joinShimCgroup(params *bootapi.BootstrapParams, pid int) error {
	var o options.Options
	if found, err := params.FindExtension(&o); err != nil {
		return fmt.Errorf("read the runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	} else if !found || o.GetShimCgroup() == "" {
		return nil
	}
	path, err := hostcgroup.Path(o.GetShimCgroup())
	if err != nil {
		return fmt.Errorf("runtime option ShimCgroup: %w", err)
	}
	mounted, err := hostcgroup.Mounted()
	if err != nil {
		return err
	}
	cg, err := hostcgroup.New(mounted, path)
	if err != nil {
		return err
	}
	if missing := cg.Missing(); len(missing) > 0 {
		return fmt.Errorf("runtime option ShimCgroup: no such cgroup: %s: %w", strings.Join(missing, ", "), errdefs.ErrNotFound)
	}
	return cg.Add(pid)
}
