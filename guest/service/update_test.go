package service

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/guest/setup"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

func TestUpdate(t *testing.T) {
	g := machine(t)
	p := g.create("c", g.spec("sleep", "1000"))
	p.start()
	// What the files hold, and what they held before: each update builds on the one before it.
	want := map[string]string{"memory.max": "max", "memory.low": "0", "cpu.weight": "100", "cpu.max": "max 100000", "pids.max": "max", "cpu.idle": "0"}
	for _, tt := range []struct {
		name, resources string
		changes         map[string]string
		fails           func(error) bool
	}{
		{"nothing", `{}`, nil, nil},
		{"first limits, refused", `{"memory":{"limit":67108864},"pids":{"limit":7},"cpu":{"quota":9000,"shares":2},"unified":{"no.file":"1"}}`, nil, func(err error) bool { return err != nil }},
		{"pids", `{"pids":{"limit":50}}`, map[string]string{"pids.max": "50"}, nil},
		{"memory", `{"memory":{"limit":33554432,"reservation":1048576}}`, map[string]string{"memory.max": "33554432", "memory.low": "1048576"}, nil},
		{"quota", `{"cpu":{"quota":50000}}`, map[string]string{"cpu.max": "50000 100000"}, nil},
		{"period", `{"cpu":{"period":200000}}`, map[string]string{"cpu.max": "50000 200000"}, nil},
		{"shares", `{"cpu":{"shares":512}}`, map[string]string{"cpu.weight": "59"}, nil},
		{"unified", `{"unified":{"memory.high":"30000000"}}`, map[string]string{"memory.high": "29999104"}, nil},
		{"no file", `{"memory":{"limit":67108864},"pids":{"limit":7},"cpu":{"quota":-1,"shares":2},"unified":{"memory.max":"60000000","no.file":"1"}}`, nil, func(err error) bool { return err != nil }},
		{"bad value", `{"pids":{"limit":7},"unified":{"memory.high":"many"}}`, nil, func(err error) bool { return err != nil }},
		{"a path", `{"unified":{"../memory.high":"1"}}`, nil, errdefs.IsInvalidArgument},
		{"no JSON", `{`, nil, errdefs.IsInvalidArgument},
		{"no limits", `{"memory":{"limit":-1},"pids":{"limit":-1},"cpu":{"quota":-1}}`, map[string]string{"memory.max": "max", "pids.max": "max", "cpu.max": "max 200000"}, nil},
		{"idle", `{"cpu":{"idle":1}}`, map[string]string{"cpu.idle": "1", "cpu.weight": "0"}, nil},
	} {
		_, err := g.Update(g.ctx, &agentpb.UpdateRequest{ContainerId: "c", Resources: []byte(tt.resources)})
		err = errgrpc.ToNative(err)
		if tt.fails == nil && err != nil || tt.fails != nil && !tt.fails(err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		maps.Copy(want, tt.changes)
		for name, value := range want {
			b, err := os.ReadFile(filepath.Join(setup.CgroupRoot, "c", name))
			if got := strings.TrimSpace(string(b)); err != nil || got != value {
				t.Errorf("after %q: %s is %q, want %q (%v)", tt.name, name, got, value, err)
			}
		}
	}
	e := p.execIn("e", &specs.Process{Args: []string{"true"}, Cwd: "/", Env: []string{"PATH=/bin"}})
	e.start()
	e.finish(0)
	if err := p.kill(unix.SIGKILL, true); err != nil {
		t.Error(err)
	}
	p.finish(137)
	if _, err := g.Update(g.ctx, &agentpb.UpdateRequest{ContainerId: "c", Resources: []byte(`{}`)}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("of an ended container: %v", err)
	}
	if _, err := g.Update(g.ctx, &agentpb.UpdateRequest{ContainerId: "d"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("of no container: %v", err)
	}
}
