package shim

import (
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// A pod has a balloon only where the settings ask for what it is for.
func TestDescribeBalloon(t *testing.T) {
	for _, on := range []bool{false, true} {
		s, err := parseSettings("f", []byte(map[bool]string{true: "free_page_reporting = true"}[on]))
		if err != nil {
			t.Fatal(err)
		}
		desc, err := new(vm).describe(vmOptions{Bundle: "/b", Settings: s, Size: size{VCPUs: 1, MemoryMiB: 128}})
		if err != nil {
			t.Fatal(err)
		}
		if !on && desc.Balloon != nil || on && (desc.Balloon == nil || *desc.Balloon != config.Balloon{FreePageReporting: true}) {
			t.Errorf("with free_page_reporting = %v: %+v", on, desc.Balloon)
		}
		if args := *desc.BootSource.BootArgs; strings.Contains(args, "fc_free_page_reporting=1") != on {
			t.Errorf("with free_page_reporting = %v: %q", on, args)
		}
	}
}
