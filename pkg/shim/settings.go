package shim

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/network"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// DefaultConfigPath is where settings are looked for when the runtime options name no file. It need not exist.
const DefaultConfigPath = "/etc/containerd-shim-fc/fc.toml"

// Settings are the keys of fc.toml; configs/fc.toml explains each. A zero field means the default.
type Settings struct {
	// VMM, Kernel and Image are paths on the host: the fc-vmm binary, a kernel (ELF or bzImage), a guest root (erofs).
	VMM    string `toml:"vmm"`
	Kernel string `toml:"kernel"`
	Image  string `toml:"image"`
	// KernelArgs are appended to the kernel command line.
	KernelArgs string `toml:"kernel_args"`
	// VCPUs and MemoryMiB size a VM whose containers ask for nothing.
	VCPUs     int `toml:"vcpus"`
	MemoryMiB int `toml:"memory_mib"`
	// ConsoleLog is a folder for the guests' console output, one file a VM of at most ConsoleLogKiB; empty for none.
	ConsoleLog    string `toml:"console_log"`
	ConsoleLogKiB int64  `toml:"console_log_kib"`
	// MetricsDir is a folder for the VMs' metrics, a file each in Prometheus' text format; empty for none.
	MetricsDir string `toml:"metrics_dir"`
	// BootTimeout bounds the guest's part of a start: the agent must have called so long after its VM runs and its files are there.
	BootTimeout Duration `toml:"boot_timeout"`
	// SpareInterfaces is the least number of network devices of a VM: for networks that are made between its start and its
	// container's.
	SpareInterfaces int `toml:"spare_interfaces"`
	// HugePages says what guest RAM is made of, as fc-vmm's machine-config does.
	HugePages string `toml:"huge_pages"`
	// FreePageReporting has the guest give memory that it has freed back to the host.
	FreePageReporting bool `toml:"free_page_reporting"`
	// Debug raises the shim's log level to debug, whatever containerd's is.
	Debug bool `toml:"debug"`
}

// Duration is a time span written as Go writes it: "30s", "1m30s".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a time span such as \"30s\"", text)
	}
	*d = Duration(v)
	return nil
}

const (
	defaultBootTimeout = 30 * time.Second
	// ctr run --cni makes its network, of one interface, when the task has been created.
	defaultSpareInterfaces = 1
	defaultConsoleLogKiB   = config.DefaultSerialBytes >> 10
	maxSettingsBytes       = 1 << 20
)

// loadSettings reads the file at path, or DefaultConfigPath if path is empty, in which case the file may be missing.
func loadSettings(path string) (*Settings, error) {
	optional := path == ""
	if optional {
		path = DefaultConfigPath
	}
	data, err := os.ReadFile(path)
	switch {
	case optional && errors.Is(err, os.ErrNotExist):
		return parseSettings(path, nil)
	case err != nil:
		return nil, fmt.Errorf("cannot read the settings: %w: %w", err, errdefs.ErrInvalidArgument)
	case len(data) > maxSettingsBytes:
		return nil, fmt.Errorf("settings %s: %d bytes, at most %d are allowed: %w", path, len(data), maxSettingsBytes, errdefs.ErrInvalidArgument)
	}
	return parseSettings(path, data)
}

// parseSettings decodes TOML; name stands for its origin in errors, which say the key and the line.
func parseSettings(name string, data []byte) (*Settings, error) {
	s := &Settings{SpareInterfaces: defaultSpareInterfaces, HugePages: config.HugePagesTransparent}
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(s); err != nil {
		var unknown *toml.StrictMissingError
		var bad *toml.DecodeError
		switch {
		case errors.As(err, &unknown) && len(unknown.Errors) > 0:
			first := unknown.Errors[0]
			row, _ := first.Position()
			err = fmt.Errorf("line %d: unknown key %q", row, strings.Join(first.Key(), "."))
		case errors.As(err, &bad):
			row, _ := bad.Position()
			key := ""
			if k := strings.Join(bad.Key(), "."); k != "" {
				key = fmt.Sprintf("key %q: ", k)
			}
			err = fmt.Errorf("line %d: %s%s", row, key, strings.TrimPrefix(bad.Error(), "toml: "))
		}
		return nil, fmt.Errorf("settings %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	if err := s.complete(); err != nil {
		return nil, fmt.Errorf("settings %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return s, nil
}

// complete puts defaults into zero fields and checks the rest against what any machine could do; checkHost asks this one.
func (s *Settings) complete() error {
	if s.VCPUs == 0 {
		s.VCPUs = config.DefaultVCPUs
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = config.DefaultMemMiB
	}
	if s.ConsoleLogKiB == 0 {
		s.ConsoleLogKiB = defaultConsoleLogKiB
	}
	if s.BootTimeout == 0 {
		s.BootTimeout = Duration(defaultBootTimeout)
	}
	switch {
	case s.VCPUs < 1 || s.VCPUs > config.MaxVCPUs:
		return fmt.Errorf("vcpus = %d: 1 to %d are allowed", s.VCPUs, config.MaxVCPUs)
	case s.MemoryMiB < config.MinMemMiB:
		return fmt.Errorf("memory_mib = %d: at least %d are needed", s.MemoryMiB, config.MinMemMiB)
	case s.ConsoleLogKiB < 1 || s.ConsoleLogKiB > 1<<20:
		return fmt.Errorf("console_log_kib = %d: 1 to %d are allowed", s.ConsoleLogKiB, 1<<20)
	case s.BootTimeout < Duration(100*time.Millisecond):
		return fmt.Errorf("boot_timeout = %q: at least 100ms are needed", time.Duration(s.BootTimeout))
	case s.SpareInterfaces < 0 || s.SpareInterfaces > network.MaxDevices:
		return fmt.Errorf("spare_interfaces = %d: 0 to %d are allowed", s.SpareInterfaces, network.MaxDevices)
	case s.HugePages != config.HugePagesNone && s.HugePages != config.HugePagesTransparent && s.HugePages != config.HugePages2M:
		return fmt.Errorf(`huge_pages = %q: "None", "Transparent" and "2M" are allowed`, s.HugePages)
	case s.HugePages == config.HugePages2M && s.FreePageReporting:
		return errors.New(`free_page_reporting = true: "None" and "Transparent" are allowed for huge_pages with it`)
	case strings.ContainsAny(s.KernelArgs, "\x00\n"):
		return errors.New("kernel_args holds a line break or a NUL byte")
	}
	for _, p := range []struct{ key, path string }{
		{"vmm", s.VMM}, {"kernel", s.Kernel}, {"image", s.Image}, {"console_log", s.ConsoleLog}, {"metrics_dir", s.MetricsDir},
	} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			return fmt.Errorf("%s = %q: an absolute path is needed", p.key, p.path)
		}
	}
	return nil
}

// locate fills in VMM, Kernel and Image if the settings left them out: beside the shim's own binary, then in the share
// folder that belongs to it, then in the system's.
func (s *Settings) locate(self string) {
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	bin := filepath.Dir(self)
	data := []string{
		bin,
		filepath.Join(bin, "..", "share", "containerd-shim-fc-v2"),
		"/usr/local/share/containerd-shim-fc-v2",
		"/usr/share/containerd-shim-fc-v2",
	}
	s.VMM = firstFile(s.VMM, "fc-vmm", bin, "/usr/local/bin", "/usr/bin")
	s.Kernel = firstFile(s.Kernel, "vmlinux", data...)
	s.Image = firstFile(s.Image, "guest.img", data...)
}

// firstFile is path, or else the first of the folders' files of that name, or else the first folder's, for the error that
// follows.
func firstFile(path, name string, folders ...string) string {
	if path != "" {
		return path
	}
	for _, f := range folders {
		if p := filepath.Join(f, name); exists(p) {
			return p
		}
	}
	return filepath.Join(folders[0], name)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
