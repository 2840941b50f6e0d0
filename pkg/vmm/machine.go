package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/boot"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/legacy"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/mmds"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
)

// Machine is a microVM. Its methods may be called from any goroutine.
type Machine struct {
	log *log.Entry

	vm    *kvm.VM
	mem   *memory.Memory
	vcpus []*vcpu

	serial  *legacy.Serial
	console *legacy.Console
	i8042   *legacy.I8042
	sleep   legacy.SleepControl
	pvpanic legacy.PVPanic
	// generation tells the guest that it is a copy.
	generation generation
	// bootTimer is nil in a machine without one.
	bootTimer *legacy.BootTimer
	devices   []*device
	// metadata is nil in a machine without a metadata service.
	metadata *mmds.Service
	// backends are the connections of the devices that other processes serve, until they are among devices.
	backends backends
	// files are the serial port's file and the lines of the legacy devices: closed after the devices, before the vCPUs.
	files []io.Closer

	startedAt time.Time
	report    report

	mu    sync.Mutex   // serialises Start, Pause, Resume and the end, which alone set state
	state atomic.Value // a config.State, to be read while a Pause is under way

	finishOnce sync.Once
	exit       Exit
	ended      chan struct{}
}

// New builds a machine from a description, whose defaults it applies, and stops short of letting it run. The errors of bad
// input are of the class errdefs.ErrInvalidArgument and name the field; those of a host without a usable KVM wrap
// kvm.ErrUnusable. After an error nothing is left.
func New(ctx context.Context, cfg config.VM, opts Options) (_ *Machine, err error) {
	begin := time.Now()
	cfg = cfg.Clone() // the caller's stays as it is
	cfg.ApplyDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Machine{log: log.G(ctx), ended: make(chan struct{})}
	m.state.Store(config.NotStarted)
	m.report.timeline = opts.Timeline
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release(true))
		}
	}()
	unchecked, required := capabilities(cfg.CPUConfig)
	base := opts.Base.own(opts.KVMPath, unchecked)
	defer base.release()
	if err := m.connectBackends(ctx, &cfg); err != nil {
		return nil, err
	}
	if m.mem, err = memory.New(uint64(cfg.Machine.MemSizeMiB)<<20, pages(&cfg)); err != nil {
		return nil, &inputError{field: memoryField(&cfg), err: err}
	}
	opts.Timeline.Mark("memory")
	// KVM waits for RCU when it makes a VM, and again for each of its ioeventfds: the kernel is read meanwhile.
	var entry boot.Entry
	var loadErr error
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		entry, loadErr = m.loadKernel(&cfg)
	}()
	defer func() { <-loaded }() // before the RAM goes
	sys, err := m.addVM(base, &cfg)
	if err != nil {
		return nil, err
	}
	if err := checkCapabilities(sys, required); err != nil {
		return nil, err
	}
	opts.Timeline.Mark("kvm")
	if err := m.addLegacy(&cfg, opts); err != nil {
		return nil, err
	}
	if cfg.BootTimer {
		m.bootTimer = &legacy.BootTimer{Booted: m.measureBoot(begin)}
	}
	m.metadata = newMetadata(&cfg, opts)
	if err := m.addDevices(&cfg); err != nil {
		return nil, err
	}
	if err := m.writeTables(&cfg); err != nil {
		return nil, err
	}
	opts.Timeline.Mark("devices")
	if <-loaded; loadErr != nil {
		return nil, loadErr
	}
	opts.Timeline.Mark("kernel")
	if err := m.createVCPUs(sys, &cfg, entry); err != nil {
		return nil, err
	}
	if opts.Latencies {
		m.measureLatency()
	}
	opts.Timeline.Mark("vcpus")
	return m, nil
}

// addVM waits for the empty VM, and gives it the machine's RAM.
func (m *Machine) addVM(base *Base, cfg *config.VM) (sys *kvm.System, err error) {
	if sys, m.vm, err = base.wait(); err != nil {
		return nil, err
	}
	limit, err := sys.MaxVCPUs()
	if err != nil {
		return nil, err
	}
	if cfg.Machine.VCPUCount > limit {
		return nil, &config.FieldError{Field: "vcpu_count", Value: strconv.Itoa(cfg.Machine.VCPUCount), Want: fmt.Sprintf("at most %d, what this host's KVM supports", limit)}
	}
	for i, r := range m.mem.Regions() {
		if err := m.vm.SetMemory(uint32(i), r.Addr, r.Mem); err != nil {
			return nil, err
		}
	}
	return sys, nil
}

// memoryField names the field that guest RAM is too small or too large by.
func memoryField(cfg *config.VM) string {
	field := fmt.Sprintf("mem_size_mib %d", cfg.Machine.MemSizeMiB)
	if cfg.Machine.HugePages == config.HugePages2M {
		field += ` with huge_pages "2M" (from the pool that /proc/sys/vm/nr_hugepages sets)`
	}
	return field
}

// pages says what guest RAM is to be made of.
func pages(cfg *config.VM) memory.Pages {
	switch cfg.Machine.HugePages {
	case config.HugePagesTransparent:
		return memory.TransparentPages
	case config.HugePages2M:
		return memory.HugeTLBPages
	}
	return memory.HostPages
}

// openConsole gives the serial port's sink.
func (m *Machine) openConsole(cfg *config.VM, opts Options) (io.Writer, error) {
	if s := cfg.Serial; s != nil && s.SerialOutPath != "" {
		f, err := legacy.OpenLog(s.SerialOutPath, s.MaxBytes)
		if err != nil {
			return nil, &inputError{field: "serial_out_path", err: err}
		}
		m.files = append(m.files, f)
		return f, nil
	}
	if opts.Console == nil {
		return io.Discard, nil
	}
	return opts.Console, nil
}

// loadKernel fills guest RAM with what the guest starts from, but for the firmware's tables: writeTables comes when the devices are there.
func (m *Machine) loadKernel(cfg *config.VM) (boot.Entry, error) {
	p := boot.Params{CommandLine: *cfg.BootSource.BootArgs + rootArguments(cfg), RSDP: boot.RSDPAddr}
	kernel, c, err := boot.Open(cfg.BootSource.KernelImagePath)
	if err != nil {
		return boot.Entry{}, &inputError{field: "kernel_image_path", err: err}
	}
	defer c.Close()
	p.Kernel = kernel
	if path := cfg.BootSource.InitrdPath; path != "" {
		initrd, c, err := boot.Open(path)
		if err != nil {
			return boot.Entry{}, &inputError{field: "initrd_path", err: err}
		}
		defer c.Close()
		p.Initrd = &initrd
	}
	entry, err := boot.Load(m.mem, p)
	if err == nil {
		return entry, nil
	}
	field := "kernel_image_path " + cfg.BootSource.KernelImagePath
	switch {
	case errors.Is(err, boot.ErrInitrd):
		field = "initrd_path " + cfg.BootSource.InitrdPath
	case errors.Is(err, boot.ErrNoRoom):
		field = memoryField(cfg)
	case errors.Is(err, boot.ErrCommandLine):
		field = "boot_args"
	}
	return boot.Entry{}, &inputError{field: field, err: err}
}

// release gives back everything. vCPUs have stopped if stopped is set; else guest RAM must stay, as they could touch it.
func (m *Machine) release(stopped bool) error {
	var errs []error
	for _, d := range slices.Backward(m.devices) {
		errs = append(errs, d.Close())
	}
	errs = append(errs, m.backends.close())
	if errors.Is(errors.Join(errs...), virtio.ErrBusy) {
		m.mem = nil // the host's kernel may still write to guest RAM: better lost than reused under its hands
	}
	if m.console != nil {
		errs = append(errs, m.console.Close(consoleTimeout))
	}
	for _, f := range m.files {
		errs = append(errs, f.Close())
	}
	if !stopped {
		return errors.Join(errs...)
	}
	for _, v := range m.vcpus {
		errs = append(errs, v.Close())
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	return errors.Join(errs...)
}
