package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/boot"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/cpu"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/legacy"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
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
	devices []*device
	// files and lines are closed last.
	files []io.Closer

	startedAt time.Time

	mu    sync.Mutex // guards state, and serialises Start, Pause and Resume
	state State

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
	m := &Machine{log: log.G(ctx), state: NotStarted, ended: make(chan struct{})}
	phase := func(name string) {
		m.log.WithFields(log.Fields{"phase": name, "elapsed": time.Since(begin)}).Debug("machine is being built")
	}
	phase("config")
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release(true))
		}
	}()
	sys, err := kvm.Open(opts.KVMPath)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	defer sys.Close()
	if err := m.createVM(sys, &cfg); err != nil {
		return nil, err
	}
	phase("memory")
	if err := m.addLegacy(&cfg, opts); err != nil {
		return nil, err
	}
	if err := m.addDevices(&cfg); err != nil {
		return nil, err
	}
	phase("devices")
	entry, err := m.loadKernel(&cfg)
	if err != nil {
		return nil, err
	}
	phase("kernel")
	if err := m.createVCPUs(sys, cfg.Machine.VCPUCount, entry); err != nil {
		return nil, err
	}
	phase("vcpus")
	return m, nil
}

func (m *Machine) createVM(sys *kvm.System, cfg *config.VM) error {
	limit, err := sys.MaxVCPUs()
	if err != nil {
		return err
	}
	if cfg.Machine.VCPUCount > limit {
		return &config.FieldError{Field: "vcpu_count", Value: strconv.Itoa(cfg.Machine.VCPUCount), Want: fmt.Sprintf("at most %d, what this host's KVM supports", limit)}
	}
	if m.mem, err = memory.New(uint64(cfg.Machine.MemSizeMiB) << 20); err != nil {
		return err
	}
	if m.vm, err = sys.CreateVM(); err != nil {
		return fmt.Errorf("%w: %w: %w", errdefs.ErrUnavailable, kvm.ErrUnusable, err)
	}
	if err := m.vm.SetIdentityMapAddr(boot.IdentityMapAddr); err != nil {
		return err
	}
	if err := m.vm.SetTSSAddr(boot.TSSAddr); err != nil {
		return err
	}
	if err := m.vm.CreateIrqchip(); err != nil {
		return err
	}
	if err := m.vm.CreatePIT2(); err != nil {
		return err
	}
	for i, r := range m.mem.Regions() {
		if err := m.vm.SetMemory(uint32(i), r.Addr, r.Mem); err != nil {
			return err
		}
	}
	return nil
}

// addLegacy makes the devices on the bus of I/O ports.
func (m *Machine) addLegacy(cfg *config.VM, opts Options) error {
	out, limit := opts.Console, int64(config.DefaultSerialBytes)
	if out == nil {
		out = io.Discard
	}
	if s := cfg.Serial; s != nil {
		limit = s.MaxBytes
		if s.SerialOutPath != "" {
			f, err := os.OpenFile(s.SerialOutPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				return &inputError{field: "serial_out_path", err: err}
			}
			m.files = append(m.files, f)
			out = f
		}
	}
	lines := make(map[uint32]*irqLine)
	for _, gsi := range []uint32{serialGSI, keyboardGSI} {
		l, err := newIRQLine(m.vm, gsi)
		if err != nil {
			return err
		}
		m.files = append(m.files, l)
		lines[gsi] = l
	}
	m.console = legacy.NewConsole(out, limit)
	m.serial = legacy.NewSerial(m.console, lines[serialGSI])
	m.i8042 = legacy.NewI8042(lines[keyboardGSI], func() { m.finish(Exit{Reason: Rebooted}) })
	m.sleep = legacy.SleepControl{TypeS5: boot.SleepTypeS5, Off: func() { m.finish(Exit{Reason: PoweredOff}) }}
	m.pvpanic = legacy.PVPanic{Panicked: func() { m.finish(Exit{Reason: Panicked}) }}
	return nil
}

// loadKernel fills guest RAM with what the guest starts from.
func (m *Machine) loadKernel(cfg *config.VM) (boot.Entry, error) {
	acpi := boot.ACPI{
		CPUs:         cfg.Machine.VCPUCount,
		SleepControl: sleepControl, SleepStatus: sleepStatus,
		ResetPort: legacy.I8042Command, ResetValue: legacy.I8042Reset,
		SerialPort: serialPort, SerialGSI: serialGSI,
		KeyboardGSI: keyboardGSI,
		PanicPort:   panicPort,
	}
	for _, d := range m.devices {
		acpi.Windows = append(acpi.Windows, d.window)
	}
	rsdp, err := boot.WriteACPI(m.mem, acpi)
	if err != nil {
		return boot.Entry{}, err
	}
	p := boot.Params{CommandLine: *cfg.BootSource.BootArgs + rootArguments(cfg), RSDP: rsdp}
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
	case errors.Is(err, boot.ErrNoRoom):
		field = fmt.Sprintf("mem_size_mib %d", cfg.Machine.MemSizeMiB)
	case errors.Is(err, boot.ErrCommandLine):
		field = "boot_args"
	}
	return boot.Entry{}, &inputError{field: field, err: err}
}

func (m *Machine) createVCPUs(sys *kvm.System, count int, entry boot.Entry) error {
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return err
	}
	deadline, err := sys.CheckExtension(kvm.CapTSCDeadlineTimer)
	if err != nil {
		return err
	}
	for id := range count {
		fd, err := m.vm.CreateVCPU(id)
		if err != nil {
			return err
		}
		v := newVCPU(id, fd)
		m.vcpus = append(m.vcpus, v)
		err = cpu.Init(fd, cpu.CPUID(supported, cpu.Topology{ID: id, Count: count}, deadline != 0))
		if err == nil && id == 0 {
			err = cpu.Start(fd, entry)
		}
		if err != nil {
			return fmt.Errorf("vCPU %d: %w", id, err)
		}
	}
	return nil
}

// release gives back everything. vCPUs have stopped if stopped is set; else guest RAM must stay, as they could touch it.
func (m *Machine) release(stopped bool) error {
	var errs []error
	for _, d := range slices.Backward(m.devices) {
		errs = append(errs, d.Close())
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
