package metrics

import (
	"reflect"
	"strings"
)

// Kind says how the values of a metric are to be understood.
type Kind int

const (
	// Delta is since the line before: they add up.
	Delta Kind = iota + 1
	// Level is how it is.
	Level
)

// Groups of devices that other processes serve, of which a line has no sum.
const (
	vhostUserBlock = "vhost_user_block"
	vhostUserFS    = "vhost_user_fs"
)

// Kinds gives the metrics that a line can have, by their names: "block.read_bytes", "block.read_agg.min_us". Those of a single device are
// under the name of their sum ("fs", "net", "block"), or what would be.
func Kinds() map[string]Kind {
	kinds := make(map[string]Kind)
	groups := map[string]any{
		"balloon": Balloon{}, "block": Block{}, "i8042": I8042{}, "uart": UART{}, "mmds": MMDS{}, "net": Net{}, "vcpu": VCPU{},
		"vsock": Vsock{}, "entropy": Entropy{}, "pmem": Pmem{}, "interrupts": Interrupts{}, "memory_hotplug": MemoryHotplug{},
		"fs": Filesystem{}, vhostUserBlock: VhostUser{}, vhostUserFS: VhostUser{}, "api_server": APIServer{}, "deprecated_api": DeprecatedAPI{}, "get_api_requests": GetRequests{},
		"latencies_us": Latencies{}, "logger": Logger{}, "patch_api_requests": PatchRequests{}, "put_api_requests": PutRequests{},
		"seccomp": Seccomp{}, "vmm": VMM{}, "signals": Signals{},
	}
	for name, g := range groups {
		addKinds(kinds, name, reflect.TypeOf(g))
	}
	return kinds
}

func addKinds(kinds map[string]Kind, name string, t reflect.Type) {
	switch t {
	case reflect.TypeFor[Counter]():
		kinds[name] = Delta
	case reflect.TypeFor[Gauge]():
		kinds[name] = Level
	default:
		for i := range t.NumField() {
			addKinds(kinds, name+"."+jsonName(t.Field(i)), t.Field(i).Type)
		}
	}
}

// Device splits the name of a device's group, as in "block_rootfs", into that of the group and the device's id. It returns false for any
// other group.
func Device(group string) (kind, id string, ok bool) {
	for _, kind := range [...]string{"block", "net", "fs", vhostUserBlock, vhostUserFS} {
		if id, ok := strings.CutPrefix(group, kind+"_"); ok && id != "" {
			return kind, id, true
		}
	}
	return "", "", false
}
