// Package config describes a virtual machine completely by one value, VM, that can be printed, compared, validated and
// logged. Names and JSON keys are Firecracker's wherever Firecracker has the thing.
package config

// VM is a machine before it is built. The zero value plus a BootSource is a machine of the default size.
type VM struct {
	Machine Machine `json:"machine-config"`
	// CPUConfig is a custom CPU template, in place of a named one.
	CPUConfig   *CPUConfig   `json:"cpu-config,omitempty"`
	BootSource  *BootSource  `json:"boot-source,omitempty"`
	Drives      []Drive      `json:"drives,omitempty"`
	Filesystems []Filesystem `json:"filesystems,omitempty"`
	// NetworkInterfaces in the order in which the guest finds them: eth0 first.
	NetworkInterfaces []NetworkInterface `json:"network-interfaces,omitempty"`

	Vsock   *Vsock   `json:"vsock,omitempty"`
	Entropy *Entropy `json:"entropy,omitempty"`
	Serial  *Serial  `json:"serial,omitempty"`
	MMDS    *MMDS    `json:"mmds-config,omitempty"`
	Balloon *Balloon `json:"balloon,omitempty"`

	// BootTimer gives the machine Firecracker's boot timer. It is no part of the JSON, as Firecracker takes it from its
	// command line only.
	BootTimer bool `json:"-"`
}

// Machine is the size of a VM.
type Machine struct {
	// VCPUCount is the number of virtual CPUs, 1 to MaxVCPUs; the default is 1.
	VCPUCount int `json:"vcpu_count"`
	// MemSizeMiB is guest RAM in MiB, MinMemMiB and up; the default is 128.
	MemSizeMiB int `json:"mem_size_mib"`
	// SMT shows the guest two threads a core; VCPUCount is 1 or even then.
	SMT bool `json:"smt"`
	// CPUTemplate is one of CPUTemplates; empty, the default, is as good as "None". There is none beside a CPUConfig.
	CPUTemplate string `json:"cpu_template,omitempty"`
	// TrackDirtyPages is accepted when false only, until snapshots exist.
	TrackDirtyPages bool `json:"track_dirty_pages"`
	// HugePages says what guest RAM is made of: "None" (the default) as the host has it for everybody, "Transparent" for pages of 2 MiB
	// where there are any, unless the host says never, "2M" for pages from the host's pool (hugetlbfs), all of which are taken at the start.
	HugePages string `json:"huge_pages,omitempty"`
}

// BootSource says what the vCPUs start with.
type BootSource struct {
	// KernelImagePath is an ELF kernel with a PVH note, or a bzImage.
	KernelImagePath string `json:"kernel_image_path"`
	// InitrdPath is an initial RAM disk; empty for none.
	InitrdPath string `json:"initrd_path,omitempty"`
	// BootArgs is the kernel command line; nil for DefaultBootArgs. At most 2047 bytes with what the VMM appends.
	BootArgs *string `json:"boot_args,omitempty"`
}

// Drive is a block device backed by a file or a host block device, or served by another process.
type Drive struct {
	DriveID string `json:"drive_id"`
	// PathOnHost is the file or block device. It is left out with Socket.
	PathOnHost string `json:"path_on_host,omitempty"`
	// Socket is where a vhost-user-blk back-end listens, which serves the drive, says whether it can be written to, and is given guest
	// RAM; at most MaxSocketPath bytes. It excludes PathOnHost, IsReadOnly, IOEngine and RateLimiter.
	Socket       string `json:"socket,omitempty"`
	IsRootDevice bool   `json:"is_root_device"`
	IsReadOnly   bool   `json:"is_read_only"`
	// CacheType is "Unsafe" (the default: flushes are acknowledged without a sync) or "Writeback" (a flush syncs). With Socket, the guest
	// has no flushes to send in the first case, and those that the back-end knows in the second.
	CacheType string `json:"cache_type,omitempty"`
	// IOEngine is "Sync" (the default: one request after another) or "Async" (many at once, by io_uring).
	IOEngine string `json:"io_engine,omitempty"`
	// PartUUID of the root partition, for a root device only.
	PartUUID string `json:"partuuid,omitempty"`
	// RateLimiter bounds the requests, and the bytes that they read and write; nil for no limit.
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// Filesystem is a host folder shared with the guest over virtio-fs. Firecracker has no such device.
type Filesystem struct {
	FSID string `json:"fs_id"`
	// Tag names the share to the guest's mount call: 1 to 36 bytes.
	Tag string `json:"tag"`
	// PathOnHost is the folder.
	PathOnHost string `json:"path_on_host,omitempty"`
	// Socket is where a vhost-user back-end serves the folder (fc-vmm fs, virtiofsd), which gets all of guest RAM and can end the VM by shrinking
	// it; at most MaxSocketPath bytes. It excludes PathOnHost and IsReadOnly.
	Socket     string `json:"socket,omitempty"`
	IsReadOnly bool   `json:"is_read_only"`
}

// NetworkInterface is a network device on a TAP interface of the host.
type NetworkInterface struct {
	IfaceID string `json:"iface_id"`
	// HostDevName is the TAP's name, in the VMM's network namespace: 1 to MaxDevName bytes. The VMM makes the TAP if there is
	// none, and then takes it away at its end.
	HostDevName string `json:"host_dev_name"`
	// GuestMAC is the guest's address, six pairs of hexadecimal digits with colons between; empty: the guest makes one up.
	GuestMAC string `json:"guest_mac,omitempty"`
	// MTU that the guest is told, MinMTU to MaxMTU bytes; 0: the guest's own idea, which is 1500.
	MTU int `json:"mtu,omitempty"`
	// RxRateLimiter bounds the frames to the guest and TxRateLimiter those from it, and their bytes; nil for no limit.
	RxRateLimiter *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TxRateLimiter *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// Vsock is the guest's socket device; the host's side is Unix sockets.
type Vsock struct {
	// GuestCID is the guest's context id, 3 to 2^32-2.
	GuestCID uint32 `json:"guest_cid"`
	// UDSPath is the socket that host programs connect to; a guest's connection to port N goes to "<UDSPath>_N".
	UDSPath string `json:"uds_path"`
	// VsockID is Firecracker's deprecated name for the device; ignored.
	VsockID string `json:"vsock_id,omitempty"`
}

// Entropy is a virtio-rng device fed by the host's random number generator.
type Entropy struct {
	// RateLimiter bounds the requests, and the bytes that they ask for; nil for no limit.
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// Serial is where COM1's output goes.
type Serial struct {
	// SerialOutPath is a file, created if need be and appended to; empty: fc-vmm's standard output.
	SerialOutPath string `json:"serial_out_path,omitempty"`
	// MaxBytes bounds the file, in bytes, what it held before included: when it is full, its oldest half is dropped. Standard
	// output has no bound. 0 is DefaultSerialBytes. Not in Firecracker.
	MaxBytes int64 `json:"max_bytes,omitempty"`
	// RateLimiter bounds the output, with a token for each byte; what is beyond is dropped. nil for no limit.
	RateLimiter *TokenBucket `json:"rate_limiter,omitempty"`
}

// Limits and defaults.
const (
	MaxVCPUs           = 32
	MinMemMiB          = 64
	DefaultVCPUs       = 1
	DefaultMemMiB      = 128
	DefaultSerialBytes = 1 << 20
	MaxBootArgs        = 2047
	// DefaultBootArgs is what a guest boots with when BootSource.BootArgs is nil.
	DefaultBootArgs = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"
	// LeanBootArgs makes the boot of a kernel cheaper that runs on a machine of ours:
	//   - percpu_alloc=page: per-CPU areas as large as they are. Otherwise one is 2 MiB, all of it zeroed, and those added
	//     later come with 4 MiB of bookkeeping: memory that the host must give page by page.
	//   - pci=noearly: no search for quirks of a bus that is not there, 220 exits.
	//   - rcupdate.rcu_expedited=1: who waits for RCU or SRCU does not wait for timer ticks, after the boot either. To make a container is to
	//     wait several times.
	LeanBootArgs = DefaultBootArgs + " percpu_alloc=page pci=noearly rcupdate.rcu_expedited=1"
)
