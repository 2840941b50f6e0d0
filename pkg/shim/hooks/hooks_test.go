package hooks

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func sh(script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"hook", "-c", script}, Env: []string{"WHO=me"}}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	r := &Runner{
		Hooks: &specs.Hooks{CreateRuntime: []specs.Hook{sh("cat >state; echo $WHO $HOME >env; pwd >cwd"), sh("echo second >>order"), sh("echo third >>order")}},
		State: specs.State{Version: specs.Version, ID: "c1", Bundle: dir, Annotations: map[string]string{"a": "b"}},
	}
	if err := r.Run(context.Background(), CreateRuntime, specs.StateCreating, 42); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	var got specs.State
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.ID != "c1" || got.Pid != 42 || got.Status != specs.StateCreating || got.Bundle != dir || got.Annotations["a"] != "b" || got.Version != specs.Version {
		t.Errorf("state %s", data)
	}
	for name, want := range map[string]string{"env": "me", "cwd": dir, "order": "second\nthird"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
	for _, p := range []Point{Prestart, Poststart, Poststop} {
		if err := r.Run(context.Background(), p, specs.StateRunning, 42); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestFailures(t *testing.T) {
	one := 1
	slow := sh("sleep 60 & sleep 60")
	slow.Timeout = &one
	for _, tt := range []struct {
		name  string
		hooks []specs.Hook
		point Point
		want  string // of the error; empty for none
		order string // what ran
	}{
		{"status", []specs.Hook{sh("echo 1 >>order; echo out; echo it  is so >&2; exit 7"), sh("echo 2 >>order")}, CreateRuntime, "createRuntime hook #0 (/bin/sh): exit status 7: out it is so", "1"},
		{"no program", []specs.Hook{{Path: "/no/such"}}, Prestart, "prestart hook #0 (/no/such): fork/exec /no/such: no such file", ""},
		{"timeout", []specs.Hook{slow}, Poststart, "poststart hook #0 (/bin/sh): it has not ended within 1s", ""},
		{"poststop goes on", []specs.Hook{sh("exit 1"), sh("echo 2 >>order")}, Poststop, "poststop hook #0 (/bin/sh): exit status 1", "2"},
		{"leaves a child", []specs.Hook{sh("sleep 5 & exit 0"), sh("echo 2 >>order")}, Poststart, "", "2"},
		{"fails and leaves a child", []specs.Hook{sh("sleep 5 & exit 3")}, Poststart, "exit status 3", ""},
		{"much output", []specs.Hook{sh("head -c 1000000 /dev/zero | tr '\\0' x; exit 1")}, Prestart, "exit status 1: xxx", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			r := &Runner{State: specs.State{Bundle: dir}, Hooks: &specs.Hooks{}}
			switch tt.point {
			case Prestart:
				//lint:ignore SA1019 deprecated, and still in use
				r.Hooks.Prestart = tt.hooks
			case CreateRuntime:
				r.Hooks.CreateRuntime = tt.hooks
			case Poststart:
				r.Hooks.Poststart = tt.hooks
			case Poststop:
				r.Hooks.Poststop = tt.hooks
			}
			begin := time.Now()
			err := r.Run(context.Background(), tt.point, specs.StateCreating, 1)
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || len(err.Error()) > 2*maxOutput) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if time.Since(begin) > 30*time.Second {
				t.Error("a child of the hook's was waited for")
			}
			if got, _ := os.ReadFile(filepath.Join(dir, "order")); strings.TrimSpace(string(got)) != tt.order {
				t.Errorf("ran %q, want %q", got, tt.order)
			}
		})
	}
}

// Who meets the default bound must learn that it is not his.
func TestTimeoutOf(t *testing.T) {
	three := 3
	if d, err := timeoutOf(specs.Hook{Timeout: &three}); d != 3*time.Second || strings.Contains(err.Error(), "default") {
		t.Errorf("%v, %v", d, err)
	}
	if d, err := timeoutOf(specs.Hook{}); d != DefaultTimeout || !strings.Contains(err.Error(), "2m0s, this runtime's default") {
		t.Errorf("%v, %v", d, err)
	}
}

func TestCheck(t *testing.T) {
	zero := 0
	for _, tt := range []struct {
		hooks *specs.Hooks
		want  string
	}{
		{nil, ""},
		{&specs.Hooks{StartContainer: []specs.Hook{{Path: "in/guest"}}, Poststop: []specs.Hook{{Path: "/x"}}}, ""},
		{&specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/x"}, {Path: "x"}}}, `hooks.createRuntime[1].path "x"`},
		{&specs.Hooks{Poststop: []specs.Hook{{Path: "/x", Timeout: &zero}}}, "hooks.poststop[0].timeout is 0"},
		{&specs.Hooks{CreateContainer: []specs.Hook{{Path: "/x"}}}, "hooks.createContainer: not supported"},
	} {
		err := Check(tt.hooks)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.hooks, err, tt.want)
		}
	}
}
