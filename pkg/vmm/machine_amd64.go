package vmm

import (
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/boot"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/cpu"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/legacy"
)

// createChips has KVM emulate the interrupt controllers and the timer.
func createChips(vm *kvm.VM) error {
	if err := vm.SetIdentityMapAddr(boot.IdentityMapAddr); err != nil {
		return err
	}
	if err := vm.SetTSSAddr(boot.TSSAddr); err != nil {
		return err
	}
	if err := vm.CreateIrqchip(); err != nil {
		return err
	}
	return vm.CreatePIT2()
}

// addLegacy makes the devices on the bus of I/O ports.
func (m *Machine) addLegacy(cfg *config.VM, opts Options) error {
	out, err := m.openConsole(cfg, opts)
	if err != nil {
		return err
	}
	lines := make(map[uint32]*irqLine)
	for _, gsi := range []uint32{serialGSI, keyboardGSI, generationGSI} {
		l := newIRQLine(m.vm, gsi)
		m.files = append(m.files, l)
		lines[gsi] = l
	}
	m.console = legacy.NewConsole(out)
	m.serial = legacy.NewSerial(m.console, lines[serialGSI])
	if s := cfg.Serial; s != nil && s.RateLimiter != nil {
		m.serial.Limiter.Update(&config.RateLimiter{Bandwidth: s.RateLimiter})
	}
	m.i8042 = legacy.NewI8042(lines[keyboardGSI], func() { m.finish(Exit{Reason: Rebooted}) })
	m.sleep = legacy.SleepControl{TypeS5: boot.SleepTypeS5, Off: func() { m.finish(Exit{Reason: PoweredOff}) }}
	m.pvpanic = legacy.PVPanic{Panicked: func() { m.finish(Exit{Reason: Panicked}) }}
	if m.generation.id, err = m.mem.Slice(boot.GenerationAddr, boot.GenerationSize); err != nil {
		return fmt.Errorf("generation id: %w", err)
	}
	if m.generation.clock, err = m.mem.Slice(boot.ClockAddr, boot.ClockSize); err != nil {
		return fmt.Errorf("VMClock: %w", err)
	}
	m.generation.irq = lines[generationGSI]
	return m.generation.write()
}

// writeTables writes the firmware's tables, which tell of the devices.
func (m *Machine) writeTables(cfg *config.VM) error {
	acpi := boot.ACPI{
		CPUs:         cfg.Machine.VCPUCount,
		SleepControl: sleepControl, SleepStatus: sleepStatus,
		ResetPort: legacy.I8042Command, ResetValue: legacy.I8042Reset,
		SerialPort: serialPort, SerialGSI: serialGSI,
		KeyboardGSI:   keyboardGSI,
		PanicPort:     panicPort,
		GenerationGSI: generationGSI,
	}
	for _, d := range m.devices {
		acpi.Windows = append(acpi.Windows, d.window)
	}
	return boot.WriteACPI(m.mem, acpi)
}

// createVCPUs makes the vCPUs, the first at the kernel's entry. The order is KVM's and the templates': what KVM supports, changed by the
// template, then by what a machine needs; only a vCPU that has its CPUID has the MSRs that go with it.
func (m *Machine) createVCPUs(sys *kvm.System, cfg *config.VM, entry boot.Entry) error {
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return err
	}
	deadline, err := sys.CheckExtension(kvm.CapTSCDeadlineTimer)
	if err != nil {
		return err
	}
	template, err := cpu.NewTemplate(cfg.Machine.CPUTemplate, cfg.CPUConfig, supported)
	if err != nil {
		return err
	}
	if supported, err = template.CPUID(supported); err != nil {
		return err
	}
	model := cpu.NewModel(supported, cpu.Host{CPUID: cpu.HostCPUID, TSCDeadline: deadline != 0})
	for id := range cfg.Machine.VCPUCount {
		fd, err := m.vm.CreateVCPU(id)
		if err != nil {
			return err
		}
		v := newVCPU(id, fd)
		m.vcpus = append(m.vcpus, v)
		err = cpu.Init(fd, model.VCPU(cpu.Topology{ID: id, Count: cfg.Machine.VCPUCount, SMT: cfg.Machine.SMT}), template)
		if err == nil && id == 0 {
			err = cpu.Start(fd, entry)
		}
		if err != nil {
			return fmt.Errorf("vCPU %d: %w", id, err)
		}
	}
	return nil
}
