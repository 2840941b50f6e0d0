package shim

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestUpdate(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	var spec specs.Spec
	name := filepath.Join(w.bundle, "config.json")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		t.Fatal(err)
	}
	limit, quota, period := int64(100<<20), int64(300_000), uint64(200_000)
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
	if b, err = json.Marshal(&spec); err != nil {
		t.Fatal(err)
	}
	w.write(name, string(b))
	w.run(nil) // in a VM of 2 vCPUs and 100+1+64 MiB
	for _, tt := range []struct {
		name, resources string
		guest           string // what goes there
		class           error
		want            string
	}{
		{"limits", `{"memory":{"limit":50000000,"swap":50000000},"pids":{"limit":9}}`, `{"memory":{"limit":50000000},"pids":{"limit":9}}`, nil, ""},
		{"all memory", `{"memory":{"limit":173015040}}`, `{"memory":{"limit":173015040}}`, nil, ""},
		{"too much memory", `{"memory":{"limit":173015041}}`, "", errdefs.ErrInvalidArgument, "memory.limit: 173015041 bytes, but the VM has 165 MiB and cannot grow: at most 173015040"},
		{"no memory limit", `{"memory":{"limit":9223372036854771712}}`, `{"memory":{"limit":9223372036854771712}}`, nil, ""},
		{"two CPUs", `{"cpu":{"quota":400000}}`, `{"cpu":{"quota":400000}}`, nil, ""},
		{"more CPUs", `{"cpu":{"quota":400001}}`, "", errdefs.ErrInvalidArgument, "cpu.quota: 400001 µs in a period of 200000 µs ask for 3 CPUs, but the VM has 2"},
		{"more CPUs by the period", `{"cpu":{"period":100000}}`, "", errdefs.ErrInvalidArgument, "400000 µs in a period of 100000 µs ask for 4 CPUs"},
		{"host's CPUs", `{"cpu":{"cpus":"7","mems":"0","shares":10},"blockIO":{"weight":100},"devices":[{"allow":true}]}`, `{"cpu":{"shares":10}}`, nil, ""},
		{"no CPU limit", `{"cpu":{"quota":-1},"unified":{"memory.high":"max"}}`, `{"cpu":{"quota":-1},"unified":{"memory.high":"max"}}`, nil, ""},
		{"a period then", `{"cpu":{"period":1000}}`, `{"cpu":{"period":1000}}`, nil, ""},
		{"no JSON", `{`, "", errdefs.ErrInvalidArgument, "resources"},
	} {
		updated := filepath.Join(w.bundle, "updated")
		_ = os.Remove(updated)
		_, err := w.Update(w.ctx, &taskapi.UpdateTaskRequest{ID: cid, Resources: &anypb.Any{Value: []byte(tt.resources)}})
		if !errors.Is(err, tt.class) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %v with %q", tt.name, err, tt.class, tt.want)
		}
		if b, _ := os.ReadFile(updated); string(b) != tt.guest {
			t.Errorf("%s: the guest got %s, want %s", tt.name, b, tt.guest)
		}
	}
	if _, err := w.Kill(w.ctx, &taskapi.KillRequest{ID: cid, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	w.wait("", 137)
	if _, err := w.Update(w.ctx, &taskapi.UpdateTaskRequest{ID: cid, Resources: &anypb.Any{Value: []byte(`{}`)}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of an ended container: %v", err)
	}
	w.delete("")
}
