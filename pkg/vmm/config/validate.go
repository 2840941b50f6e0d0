package config

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits that Validate enforces, besides those of config.go.
const (
	// MaxMemMiB is the largest guest RAM: what fits below the second hole at 256 GiB.
	MaxMemMiB = 255 << 10
	// MaxDevices is how many virtio devices a machine holds: one interrupt line each, GSIs 5 to 23.
	MaxDevices = 19
	// MaxIDLen bounds the ids of drives, filesystems and network interfaces, in bytes.
	MaxIDLen = 64
	// MaxTagLen bounds a virtio-fs tag, in bytes (virtio 1.2 §5.11.4).
	MaxTagLen = 36
	// MinGuestCID is the first context id that a guest can have; 0 to 2 are the hypervisor, loopback and the host.
	MinGuestCID = 3
	// MaxGuestCID is the last one; 2^32-1 means "any" (virtio 1.2 §5.10.4).
	MaxGuestCID = 1<<32 - 2
	// MaxUDSPath bounds a vsock device's socket path, in bytes: what a Unix socket's address holds without its final NUL,
	// less what "_<port>" takes in the names of the sockets beside it.
	MaxUDSPath = 107 - len("_4294967295")
	// MaxSocketPath bounds the path of a socket to connect to, in bytes.
	MaxSocketPath = 107
	// maxPath is PATH_MAX without its final NUL.
	maxPath = 4095
)

// Values of the enumerations.
const (
	CacheUnsafe    = "Unsafe"
	CacheWriteback = "Writeback"
	IOSync         = "Sync"
	IOAsync        = "Async"

	HugePagesNone        = "None"
	HugePagesTransparent = "Transparent"
	HugePages2M          = "2M"
)

// ApplyDefaults fills what was left out. It is the only place that knows the defaults, and changes nothing when called
// again. Validate wants them applied.
func (vm *VM) ApplyDefaults() {
	if vm.Machine.VCPUCount == 0 {
		vm.Machine.VCPUCount = DefaultVCPUs
	}
	if vm.Machine.MemSizeMiB == 0 {
		vm.Machine.MemSizeMiB = DefaultMemMiB
	}
	if vm.Machine.CPUTemplate == CPUTemplateNone {
		vm.Machine.CPUTemplate = ""
	}
	if vm.Machine.HugePages == "" {
		vm.Machine.HugePages = HugePagesNone
	}
	if vm.BootSource != nil && vm.BootSource.BootArgs == nil {
		args := DefaultBootArgs
		vm.BootSource.BootArgs = &args
	}
	for i := range vm.Drives {
		if vm.Drives[i].CacheType == "" {
			vm.Drives[i].CacheType = CacheUnsafe
		}
		if vm.Drives[i].IOEngine == "" && vm.Drives[i].Socket == "" {
			vm.Drives[i].IOEngine = IOSync
		}
	}
	if vm.Serial != nil && vm.Serial.MaxBytes == 0 {
		vm.Serial.MaxBytes = DefaultSerialBytes
	}
	if vm.MMDS != nil {
		vm.MMDS.applyDefaults()
	}
}

// Validate checks all that can be checked without touching the host: that files exist and can be opened is found where
// they are opened. An error is a FieldError.
func (vm *VM) Validate() error {
	if vm.BootSource == nil {
		return &FieldError{Field: "boot-source", Want: "a kernel to boot"}
	}
	return vm.ValidateParts()
}

// ValidateParts is Validate for a machine that is still being described: what is there must be right, and what is missing
// may come later.
func (vm *VM) ValidateParts() error {
	if err := vm.Machine.Validate(); err != nil {
		return err
	}
	if vm.CPUConfig != nil {
		if err := vm.CPUConfig.Validate(); err != nil {
			return err
		}
		if t := vm.Machine.CPUTemplate; t != "" && t != CPUTemplateNone {
			return BadString("cpu_template", t, `"None" beside a cpu-config`)
		}
	}
	if vm.BootSource != nil {
		if err := vm.BootSource.Validate(); err != nil {
			return err
		}
	}
	if err := vm.validateDrives(); err != nil {
		return err
	}
	if err := vm.validateFilesystems(); err != nil {
		return err
	}
	if err := vm.validateNetworkInterfaces(); err != nil {
		return err
	}
	if err := vm.validateMMDS(); err != nil {
		return err
	}
	if vm.Vsock != nil {
		if err := vm.Vsock.Validate(); err != nil {
			return err
		}
	}
	if vm.Entropy != nil {
		if err := vm.Entropy.Validate(); err != nil {
			return err
		}
	}
	if vm.Serial != nil {
		if err := vm.Serial.Validate(); err != nil {
			return err
		}
	}
	if err := vm.validateBalloon(); err != nil {
		return err
	}
	if n := vm.devices(); n > MaxDevices {
		return bad("number of devices (drives, filesystems, network interfaces, vsock, entropy, balloon)", n, fmt.Sprintf("at most %d", MaxDevices))
	}
	return nil
}

func (vm *VM) devices() int {
	n := len(vm.Drives) + len(vm.Filesystems) + len(vm.NetworkInterfaces)
	if vm.Vsock != nil {
		n++
	}
	if vm.Entropy != nil {
		n++
	}
	if vm.Balloon != nil {
		n++
	}
	return n
}

func (vm *VM) validateDrives() error {
	ids := make(map[string]bool, len(vm.Drives))
	root := ""
	for i := range vm.Drives {
		d := &vm.Drives[i]
		if err := d.Validate(); err != nil {
			return err
		}
		if ids[d.DriveID] {
			return BadString("drive_id", d.DriveID, "an id that no other drive has")
		}
		ids[d.DriveID] = true
		if d.IsRootDevice && root != "" {
			return bad("drives/"+d.DriveID+"/is_root_device", true, fmt.Sprintf("one root device, and drive %q is one already", root))
		}
		if d.IsRootDevice {
			root = d.DriveID
		}
	}
	return nil
}

func (vm *VM) validateFilesystems() error {
	ids := make(map[string]bool, len(vm.Filesystems))
	tags := make(map[string]bool, len(vm.Filesystems))
	for i := range vm.Filesystems {
		f := &vm.Filesystems[i]
		if err := f.Validate(); err != nil {
			return err
		}
		if ids[f.FSID] {
			return BadString("fs_id", f.FSID, "an id that no other filesystem has")
		}
		if tags[f.Tag] {
			return BadString("filesystems/"+f.FSID+"/tag", f.Tag, "a tag that no other filesystem has")
		}
		ids[f.FSID], tags[f.Tag] = true, true
	}
	return nil
}

// Validate checks the size. Zero is no size: ApplyDefaults comes first.
func (m *Machine) Validate() error {
	switch {
	case m.VCPUCount < 1 || m.VCPUCount > MaxVCPUs:
		return bad("vcpu_count", m.VCPUCount, fmt.Sprintf("1 to %d", MaxVCPUs))
	case m.MemSizeMiB < MinMemMiB || m.MemSizeMiB > MaxMemMiB:
		return bad("mem_size_mib", m.MemSizeMiB, fmt.Sprintf("%d to %d MiB", MinMemMiB, MaxMemMiB))
	case m.SMT && m.VCPUCount > 1 && m.VCPUCount%2 == 1:
		return bad("vcpu_count", m.VCPUCount, "1 or an even number, as smt is true")
	case m.CPUTemplate != "" && !slices.Contains(CPUTemplates(), m.CPUTemplate):
		return BadString("cpu_template", m.CPUTemplate, strings.Join(CPUTemplates(), ", "))
	case m.TrackDirtyPages:
		return bad("track_dirty_pages", true, "false: snapshots are not supported")
	}
	return m.validateHugePages()
}

func (m *Machine) validateHugePages() error {
	switch m.HugePages {
	case "", HugePagesNone, HugePagesTransparent:
	case HugePages2M:
		if m.MemSizeMiB%2 != 0 {
			return bad("mem_size_mib", m.MemSizeMiB, `an even number with huge_pages "2M"`)
		}
	default:
		return BadString("huge_pages", m.HugePages, `"None", "Transparent" or "2M"`)
	}
	return nil
}

// Validate checks the paths' form and the command line.
func (b *BootSource) Validate() error {
	if err := checkPath("kernel_image_path", b.KernelImagePath, maxPath); err != nil {
		return err
	}
	if b.InitrdPath != "" {
		if err := checkPath("initrd_path", b.InitrdPath, maxPath); err != nil {
			return err
		}
	}
	if b.BootArgs == nil {
		return nil
	}
	if n := len(*b.BootArgs); n > MaxBootArgs {
		return BadString("boot_args", *b.BootArgs, fmt.Sprintf("at most %d bytes", MaxBootArgs))
	}
	for i := range len(*b.BootArgs) {
		if c := (*b.BootArgs)[i]; c < ' ' || c > '~' {
			return bad("boot_args", fmt.Sprintf("a line with byte %#02x at offset %d", c, i), "printable ASCII only")
		}
	}
	return nil
}

// Validate checks a drive for itself; that its id is unique is the VM's matter.
func (d *Drive) Validate() error {
	if err := checkID("drive_id", d.DriveID); err != nil {
		return err
	}
	at := "drives/" + d.DriveID + "/"
	if err := d.validatePlace(at); err != nil {
		return err
	}
	switch d.CacheType {
	case "", CacheUnsafe, CacheWriteback:
	default:
		return BadString(at+"cache_type", d.CacheType, `"Unsafe" or "Writeback"`)
	}
	switch d.IOEngine {
	case "", IOSync, IOAsync:
	default:
		return BadString(at+"io_engine", d.IOEngine, `"Sync" or "Async"`)
	}
	// It ends up on the kernel's command line, so it must not bring words of its own. The forms are a GPT's UUID and an
	// MBR's "0eaa91a0-01". Firecracker ignores it for a drive that is not the root device, and so do we.
	if len(d.PartUUID) > 36 || strings.Trim(d.PartUUID, "0123456789abcdefABCDEF-") != "" {
		return BadString(at+"partuuid", d.PartUUID, "up to 36 hexadecimal digits and hyphens")
	}
	return d.RateLimiter.validate(at + "rate_limiter")
}

// Validate checks a filesystem for itself.
func (f *Filesystem) Validate() error {
	if err := checkID("fs_id", f.FSID); err != nil {
		return err
	}
	at := "filesystems/" + f.FSID + "/"
	if f.Tag == "" || len(f.Tag) > MaxTagLen || !utf8.ValidString(f.Tag) || strings.ContainsFunc(f.Tag, isControl) {
		return BadString(at+"tag", f.Tag, fmt.Sprintf("1 to %d bytes of UTF-8 without control characters", MaxTagLen))
	}
	return f.validatePlace(at)
}

// Validate checks the context id and the path's form.
func (v *Vsock) Validate() error {
	if v.GuestCID < MinGuestCID || v.GuestCID > MaxGuestCID {
		return bad("guest_cid", v.GuestCID, fmt.Sprintf("%d to %d", MinGuestCID, uint32(MaxGuestCID)))
	}
	// Go takes a leading @ for an abstract name, which everybody on the host can connect to.
	if strings.HasPrefix(v.UDSPath, "@") {
		return BadString("uds_path", v.UDSPath, "a path that does not begin with @")
	}
	return checkPath("uds_path", v.UDSPath, MaxUDSPath)
}

// Validate checks the path's form and the bound.
func (s *Serial) Validate() error {
	if s.MaxBytes < 0 {
		return bad("max_bytes", s.MaxBytes, fmt.Sprintf("0 (for %d) or more", DefaultSerialBytes))
	}
	if err := s.RateLimiter.validate("serial/rate_limiter"); err != nil {
		return err
	}
	if s.SerialOutPath == "" {
		return nil
	}
	return checkPath("serial_out_path", s.SerialOutPath, maxPath)
}

func checkID(field, id string) error {
	ok := id != "" && len(id) <= MaxIDLen
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
	}
	if !ok {
		return BadString(field, id, fmt.Sprintf("1 to %d letters, digits and underscores", MaxIDLen))
	}
	return nil
}

func checkPath(field, path string, limit int) error {
	if path == "" || len(path) > limit || strings.IndexByte(path, 0) >= 0 {
		return BadString(field, path, fmt.Sprintf("a path of at most %d bytes without NUL", limit))
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }
