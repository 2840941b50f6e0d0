package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// The file that we ship is read without an error, and says the defaults.
func TestShippedSettings(t *testing.T) {
	data, err := os.ReadFile("../../configs/fc.toml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseSettings("fc.toml", data)
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseSettings("nothing", nil)
	if err != nil {
		t.Fatal(err)
	}
	if *got != *want {
		t.Errorf("configs/fc.toml says %+v, the defaults are %+v", got, want)
	}
	// What it shows as comments must be keys too.
	commented := strings.NewReplacer("# vmm", "vmm", "# kernel =", "kernel =", "# image", "image").Replace(string(data))
	if s, err := parseSettings("fc.toml", []byte(commented)); err != nil || s.VMM == "" || s.Kernel == "" || s.Image == "" {
		t.Errorf("with its comments: %+v %v", s, err)
	}
}

func TestBadSettings(t *testing.T) {
	for text, want := range map[string]string{
		"\n\nmemory = 3":          `line 3: unknown key "memory"`,
		"[vm]\nvcpus = 1":         `unknown key "vm`,
		"vcpus = \"two\"":         "line 1",
		"vcpus = ":                "line 1",
		"vcpus = 33":              "vcpus = 33: 1 to 32 are allowed",
		"vcpus = -1":              "vcpus = -1",
		"memory_mib = 63":         "memory_mib = 63: at least 64 are needed",
		"boot_timeout = \"fast\"": `"fast" is not a time span`,
		"boot_timeout = \"1ms\"":  "boot_timeout",
		"kernel = \"vmlinux\"":    `kernel = "vmlinux": an absolute path is needed`,
		"console_log_kib = -1":    "console_log_kib",
		"metrics_dir = \"m\"":     `metrics_dir = "m": an absolute path is needed`,
		"kernel_args = \"a\\nb\"": "kernel_args",
		"huge_pages = \"yes\"":    `huge_pages = "yes": "None", "Transparent" and "2M" are allowed`,
		"huge_pages = \"2M\"\nfree_page_reporting = true": "free_page_reporting = true",
		"debug = 1":                     "line 1",
		"image = \"/a\"\nimage = \"b\"": "line 2",
	} {
		_, err := parseSettings("f", []byte(text))
		t.Log(err)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestSettingsFromOptions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fc.toml")
	if err := os.WriteFile(file, []byte("vcpus = 3\nboot_timeout = \"1m\""), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		options any
		vcpus   int
	}{
		"none":   {nil, 1},
		"runc's": {&options.Options{BinaryName: "crun"}, 1},
		"a file": {&runtimeoptions.Options{ConfigPath: file, ConfigBody: []byte("x")}, 3},
		"a body": {&runtimeoptions.Options{ConfigBody: []byte("vcpus = 4")}, 4},
	} {
		var a *anypb.Any
		if tt.options != nil {
			var err error
			if a, err = typeurl.MarshalAnyToProto(tt.options); err != nil {
				t.Fatal(err)
			}
		}
		s, err := settingsFromOptions(a)
		if err != nil || s.VCPUs != tt.vcpus {
			t.Errorf("%s: %+v %v", name, s, err)
		}
		if name == "a file" && time.Duration(s.BootTimeout) != time.Minute {
			t.Errorf("boot_timeout is %v", s.BootTimeout)
		}
	}
}

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	share := filepath.Join(dir, "share", "containerd-shim-fc-v2")
	for _, d := range []string{filepath.Join(dir, "bin"), share} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{filepath.Join(dir, "bin", "fc-vmm"), filepath.Join(dir, "bin", "shim"), filepath.Join(share, "vmlinux")} {
		if err := os.WriteFile(f, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := &Settings{Image: "/my.img"}
	s.locate(filepath.Join(dir, "bin", "shim"))
	if s.VMM != filepath.Join(dir, "bin", "fc-vmm") || s.Kernel != filepath.Join(share, "vmlinux") || s.Image != "/my.img" {
		t.Errorf("%+v", s)
	}
}

func TestVMSize(t *testing.T) {
	num := func(v int64) *int64 { return &v }
	unum := func(v uint64) *uint64 { return &v }
	s := &Settings{VCPUs: 2, MemoryMiB: 256}
	for name, tt := range map[string]struct {
		r    *specs.LinuxResources
		want size
		bad  bool
	}{
		"nothing":         {nil, size{2, 256}, false},
		"empty":           {&specs.LinuxResources{}, size{2, 256}, false},
		"no quota":        {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: num(-1)}}, size{2, 256}, false},
		"one and a bit":   {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: num(150001), Period: unum(100000)}}, size{2, 256}, false},
		"half a CPU":      {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: num(50000)}}, size{1, 256}, false},
		"absurd":          {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: num(1 << 62), Period: unum(1)}}, size{}, true},
		"5 GiB":           {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: num(5 << 30)}}, size{2, 5120 + 80 + 64}, false},
		"a byte":          {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: num(1)}}, size{2, 65}, false},
		"unlimited":       {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: num(1<<63 - 4096)}}, size{2, 256}, false},
		"unlimited by -1": {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: num(-1)}}, size{2, 256}, false},
	} {
		got, err := vmSize(s, &specs.Spec{Linux: &specs.Linux{Resources: tt.r}})
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%s: %+v %v, want %+v", name, got, err, tt.want)
		}
	}
}
