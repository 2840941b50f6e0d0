package shim

import (
	"os"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
)

func TestShimCgroupRefused(t *testing.T) {
	for _, tc := range []struct {
		cgroup string
		want   func(error) bool
	}{
		{"", func(err error) bool { return err == nil }},
		{"/../up", errdefs.IsInvalidArgument},
		// There is none of this name, or no hierarchy at all.
		{"/fctest-no-such-cgroup", func(err error) bool { return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) }},
	} {
		params := &bootapi.BootstrapParams{}
		if err := params.AddExtension(&options.Options{ShimCgroup: tc.cgroup}); err != nil {
			t.Fatal(err)
		}
		if err := joinShimCgroup(params, os.Getpid()); !tc.want(err) {
			t.Errorf("ShimCgroup %q: %v", tc.cgroup, err)
		}
	}
}
