package shim

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/network"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// fc-vmm takes what the shim describes, as it was meant.
func TestDescriptionIsTaken(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir) // the bundle
	l, err := net.Listen("unix", filesSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, name := range []string{"vmlinux", "guest.img"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, more := range []string{"", "free_page_reporting = true\nconsole_log = \"" + dir + "\"\ndebug = true\nhuge_pages = \"None\"\nkernel_args = \"quiet \\\"a b\\\"\""} {
		s, err := parseSettings("f", []byte("kernel = \""+dir+"/vmlinux\"\nimage = \""+dir+"/guest.img\"\n"+more))
		if err != nil {
			t.Fatal(err)
		}
		desc, err := new(vm).describe(vmOptions{
			Namespace: "ns", ID: "id", Bundle: "/b", Settings: s, Size: size{VCPUs: 2, MemoryMiB: 128},
			Devices: []network.Device{{TAP: "tap0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, {TAP: "tap1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(desc)
		if err != nil {
			t.Fatal(err)
		}
		var got config.VM
		server := api.NewServer(api.Options{Boot: func(_ context.Context, vm config.VM) (api.Machine, error) {
			got = vm
			return nil, context.Canceled // that was all
		}})
		if err := server.Configure(t.Context(), text); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		_ = server.Start(t.Context())
		desc.ApplyDefaults()
		if !reflect.DeepEqual(&got, desc) {
			t.Errorf("got %+v, want %+v", got, desc)
		}
	}
}

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
