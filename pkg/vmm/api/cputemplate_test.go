package api

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

func TestCPUConfigRequests(t *testing.T) {
	testRequests(t, []requestTest{
		{"PUT", "/cpu-config", `{}`, "", afterStart},
		{"PUT", "/cpu-config", `{"kvm_capabilities": ["171", "!56"], "cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0b0", "flags": 0, "modifiers": [
			{"register": "eax", "bitmap": "0bxxxx000000000011xx00011011110010"}]}], "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b0_1"}],
			"reg_modifiers": [], "vcpu_features": null}`, "", afterStart},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": null, "msr_modifiers": []}`, "", afterStart},
		{"PUT", "/cpu-config", `{"cpuid_modifier": []}`, "unknown field `cpuid_modifier`, expected one of `cpuid_modifiers`", "cpuid_modifier"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": {}}`, "cpuid_modifiers: invalid type: want an array", "array"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [5]}`, "cpuid_modifiers[0]: invalid type: want an object", "object"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [null]}`, "cpuid_modifiers[0]: invalid type: want an object", "object"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "modifiers": []}]}`, "missing field `cpuid_modifiers[0]/flags` at line 1", "flags"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 8, "modifiers": []}]}`, "cpu-config/cpuid_modifiers[0]/flags is 8: want 0 to 7", "flags"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [{"leaf": "x", "subleaf": "0x0", "flags": 0, "modifiers": []}]}`, `cpuid_modifiers[0]/leaf is "x": want an integer of at most 32 bits`, "leaf"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [{"leaf": 1, "subleaf": "0x0", "flags": 0, "modifiers": []}]}`, `cpuid_modifiers[0]/leaf is 1: want a string`, "leaf"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "flags": 0, "modifiers": [{"register": "eax", "bitmap": "0b1"}, {"register": "eex", "bitmap": "0b1"}]}]}`,
			`cpu-config/cpuid_modifiers[0]/modifiers[1]/register is "eex": want "eax", "ebx", "ecx" or "edx"`, "register"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "flags": 0, "modifiers": [{"register": "eax", "bitmap": "0b12"}]}]}`,
			`cpuid_modifiers[0]/modifiers[0]/bitmap is "0b12": want "0b" and up to 32 of 0, 1 and x, for a bit that stays as it is`, "bitmap"},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "flags": 0, "modifiers": [{"register": "eax"}]}]}`,
			"missing field `cpuid_modifiers[0]/modifiers[0]/bitmap`", "bitmap"},
		{"PUT", "/cpu-config", `{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b` + strings.Repeat("x", 65) + `"}]}`, "up to 64 of 0, 1 and x", "64"},
		{"PUT", "/cpu-config", `{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1", "bit": 1}]}`, "unknown field `msr_modifiers[0]/bit`", "bit"},
		{"PUT", "/cpu-config", `{"msr_modifiers": [{"bitmap": "0b1"}]}`, "missing field `msr_modifiers[0]/addr`", "addr"},
		{"PUT", "/cpu-config", `{"kvm_capabilities": ["171", "KVM_CAP_XCRS"]}`, `kvm_capabilities[1] is "KVM_CAP_XCRS": want a number of a KVM capability`, "kvm_capabilities"},
		{"PUT", "/cpu-config", `{"kvm_capabilities": [171]}`, `kvm_capabilities[0] is 171: want a string`, "kvm_capabilities"},
		{"PUT", "/cpu-config", `{"kvm_capabilities": "171"}`, "kvm_capabilities: invalid type: want an array", "array"},
		{"PUT", "/cpu-config", `{"reg_modifiers": [{"addr": "0x603000000013c020", "bitmap": "0b0"}]}`, "want null, it is not supported", "not supported"},
		{"GET", "/cpu-config", "", "Invalid request", "Invalid request"},
	})
}

// A CPU template, named or custom, stays until another one is named.
func TestCPUTemplateThatCounts(t *testing.T) {
	const custom = `{"cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [{"register": "ebx", "bitmap": "0b0"}]}]}`
	b := newBench(t)
	want := func(template string, isCustom bool) {
		t.Helper()
		vm, _ := b.control.snapshot()
		if vm.Machine.CPUTemplate != template || (vm.CPUConfig != nil) != isCustom {
			t.Errorf("template %q, custom %+v; want %q, %v", vm.Machine.CPUTemplate, vm.CPUConfig, template, isCustom)
		}
		if shown := b.must(t, "GET", "/machine-config", ""); strings.Contains(shown, `"cpu_template":"`+template+`"`) != (template != "") {
			t.Errorf("GET /machine-config: %s", shown)
		}
		if shown := b.must(t, "GET", "/vm/config", ""); strings.Contains(shown, `"leaf":"0x7"`) != isCustom {
			t.Errorf("GET /vm/config: %s", shown)
		}
	}
	want("", false)
	b.must(t, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2"}`)
	want("T2", false)
	b.must(t, "PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 64, "cpu_template": null}`)
	want("T2", false)
	b.must(t, "PATCH", "/machine-config", `{"smt": true}`)
	want("T2", false)
	b.must(t, "PUT", "/cpu-config", custom)
	want("", true)
	b.must(t, "PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 128}`)
	b.must(t, "PATCH", "/machine-config", `{"mem_size_mib": 64}`)
	want("", true)
	b.must(t, "PATCH", "/machine-config", `{"cpu_template": "C3"}`)
	want("C3", false)
	b.must(t, "PUT", "/cpu-config", custom)
	if status, _ := b.do("PATCH", "/machine-config", `{"cpu_template": "C3", "vcpu_count": 0}`); status != 400 {
		t.Errorf("no vCPU: %d", status)
	}
	want("", true)
	b.must(t, "PATCH", "/machine-config", `{"cpu_template": "None"}`)
	want("", false)
	b.must(t, "PATCH", "/machine-config", `{"cpu_template": "T2A"}`)
	b.must(t, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "None"}`)
	want("", false)
	vm, _ := b.control.snapshot()
	if m := (config.Machine{VCPUCount: 1, MemSizeMiB: 64, HugePages: "None"}); vm.Machine != m {
		t.Errorf("PUT has kept something: %+v", vm.Machine)
	}
}

// Firecracker's sign that something will go, in the answer's header and in the metrics: whether the request is refused for another reason
// does not matter, unless it is none that can be read.
func TestDeprecated(t *testing.T) {
	b := newBench(t)
	b.must(t, "PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0"}`)
	calls := uint64(0)
	for _, c := range []struct {
		method, path, body string
		want               string
	}{
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "None"}`, "true"},
		{"PATCH", "/machine-config", `{"cpu_template": "T2"}`, "true"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": null}`, ""},
		{"PATCH", "/machine-config", `{"cpu_template": "T3"}`, ""},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "` + b.dir + `/v", "vsock_id": "v"}`, "true"},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "` + b.dir + `/v"}`, ""},
		{"PUT", "/mmds/config", `{"network_interfaces": ["eth0"]}`, "true"},
		{"PUT", "/mmds/config", `{"network_interfaces": ["eth0"], "version": "V1"}`, "true"},
		{"PUT", "/mmds/config", `{"network_interfaces": ["eth0"], "version": null}`, "true"},
		{"PUT", "/mmds/config", `{"network_interfaces": ["nope"], "version": "V1"}`, "true"},
		{"PUT", "/mmds/config", `{"network_interfaces": ["eth0"], "version": "V2"}`, ""},
		{"PUT", "/mmds/config", `{"network_interfaces": "eth0"}`, ""},
		{"PUT", "/mmds", `{"version": "V1"}`, ""},
	} {
		w := httptest.NewRecorder()
		b.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if got := w.Header().Get("Deprecation"); got != c.want {
			t.Errorf("%s %s %s: Deprecation is %q, want %q (%d)", c.method, c.path, c.body, got, c.want, w.Code)
		}
		if c.want != "" {
			calls++
		}
		if got := b.metrics.DeprecatedAPI.HTTPCalls.Count(); got != calls {
			t.Fatalf("%s %s %s: deprecated_http_api_calls is %d, want %d", c.method, c.path, c.body, got, calls)
		}
	}
}
