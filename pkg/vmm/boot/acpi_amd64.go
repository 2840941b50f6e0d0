package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
)

// Window is a virtio-mmio device's place.
type Window struct {
	// Addr and Size of its registers, below 4 GiB, in bytes.
	Addr, Size uint32
	// GSI is its interrupt.
	GSI uint32
}

// ACPI is what the firmware's tables tell the guest.
type ACPI struct {
	// CPUs is the number of vCPUs, whose APIC ids count from 0.
	CPUs int
	// Windows are the virtio-mmio devices, announced as LNRO0005.
	Windows []Window
	// SleepControl and SleepStatus are I/O ports of one byte (ACPI 6.5 §4.8.3.7).
	SleepControl, SleepStatus uint16
	// ResetPort takes ResetValue to reset the machine.
	ResetPort  uint16
	ResetValue byte
	// SerialPort and SerialGSI: a 16550A. Port 0: none.
	SerialPort uint16
	SerialGSI  uint32
	// KeyboardGSI is the i8042's interrupt; its ports are 0x60 and 0x64.
	KeyboardGSI uint32
	// PanicPort is pvpanic's I/O port.
	PanicPort uint16
	// GenerationGSI is raised when what is at GenerationAddr and ClockAddr has changed.
	GenerationGSI uint32
}

// SleepTypeS5 is the sleep type that the guest writes to power off.
const SleepTypeS5 = 5

// RSDPAddr is where WriteACPI puts the tables' root.
const RSDPAddr = acpiAddr

// WriteACPI writes the tables below 1 MiB, the RSDP at RSDPAddr. The platform is hardware-reduced: no PM timer, no
// SCI, no PIC that the guest would have to look for (ACPI 6.5 §4.1).
func WriteACPI(mem *memory.Memory, a ACPI) error {
	at := uint64(acpiAddr) + 64 // behind the RSDP
	place := func(table []byte) (uint64, error) {
		addr := at
		if at += alignUp(uint64(len(table)), 16); at > kernelAddr {
			return 0, fmt.Errorf("ACPI tables: %d bytes more than fit below %#x", at-kernelAddr, uint64(kernelAddr))
		}
		return addr, writeGuest(mem, addr, table)
	}
	dsdt, err := place(acpiTable("DSDT", 2, a.dsdt()))
	if err != nil {
		return err
	}
	fadt, err := place(a.fadt(dsdt))
	if err != nil {
		return err
	}
	madt, err := place(a.madt())
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	xsdt, err := place(acpiTable("XSDT", 1, le.AppendUint64(le.AppendUint64(nil, fadt), madt)))
	if err != nil {
		return err
	}
	r := make([]byte, 36) // ACPI 6.5 §5.2.5.3
	copy(r, "RSD PTR ")
	copy(r[9:], acpiOEM)
	r[15] = 2
	le.PutUint32(r[20:], uint32(len(r)))
	le.PutUint64(r[24:], xsdt)
	r[8] = checksum(r[:20])
	r[32] = checksum(r)
	return writeGuest(mem, acpiAddr, r)
}

const (
	acpiOEM        = "FCSHIM"
	acpiHeaderSize = 36
)

// acpiTable puts a header before a table's body (§5.2.6).
func acpiTable(signature string, revision byte, body []byte) []byte {
	t := make([]byte, acpiHeaderSize, acpiHeaderSize+len(body))
	t = append(t, body...)
	copy(t, signature)
	binary.LittleEndian.PutUint32(t[4:], uint32(len(t)))
	t[8] = revision
	copy(t[10:], acpiOEM)
	copy(t[16:], "FCVMM   ")
	t[24] = 1
	copy(t[28:], "FCVM")
	t[32] = 1
	t[9] = checksum(t)
	return t
}

// checksum is the byte that makes the sum of p zero.
func checksum(p []byte) byte {
	var s byte
	for _, b := range p {
		s += b
	}
	return -s
}

// fadt is the Fixed ACPI Description Table (§5.2.9).
func (a *ACPI) fadt(dsdt uint64) []byte {
	const (
		size = 276
		// IAPC_BOOT_ARCH
		legacyDevices, i8042, noVGA, noMSI, noASPM, noRTC = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
		// Flags
		wbinvd, powerButton, sleepButton, resetSupported, hwReduced = 1 << 0, 1 << 4, 1 << 5, 1 << 10, 1 << 20
	)
	le := binary.LittleEndian
	t := make([]byte, size-acpiHeaderSize)
	field := func(offset int) []byte { return t[offset-acpiHeaderSize:] }
	le.PutUint16(field(109), legacyDevices|i8042|noVGA|noMSI|noASPM|noRTC)
	le.PutUint32(field(112), wbinvd|powerButton|sleepButton|resetSupported|hwReduced)
	copy(field(116), ioRegister(a.ResetPort))
	field(128)[0] = a.ResetValue
	field(131)[0] = 5 // minor version
	le.PutUint64(field(140), dsdt)
	copy(field(244), ioRegister(a.SleepControl))
	copy(field(256), ioRegister(a.SleepStatus))
	copy(field(268), "FCVMM")
	return acpiTable("FACP", 6, t)
}

// ioRegister is a Generic Address Structure for one byte at an I/O port (§5.2.3.2).
func ioRegister(port uint16) []byte {
	const systemIO, byteAccess = 1, 1
	return binary.LittleEndian.AppendUint64([]byte{systemIO, 8, 0, byteAccess}, uint64(port))
}

// madt is the Multiple APIC Description Table (§5.2.12): local APICs and one IOAPIC, whose pins are the GSIs one to one.
func (a *ACPI) madt() []byte {
	le := binary.LittleEndian
	t := le.AppendUint32(nil, LAPICAddr)
	t = le.AppendUint32(t, 0)
	for id := range a.CPUs {
		t = le.AppendUint32(append(t, 0, 8, byte(id), byte(id)), 1) // enabled
	}
	t = le.AppendUint32(append(t, 1, 12, 0, 0), IOAPICAddr)
	t = le.AppendUint32(t, 0)
	return acpiTable("APIC", 5, t)
}

// dsdt is the body of the table of devices.
func (a *ACPI) dsdt() []byte {
	var devices [][]byte
	for i, w := range a.Windows {
		devices = append(devices, amlDevice(fmt.Sprintf("VR%02d", i),
			amlName("_HID", amlString("LNRO0005")),
			amlName("_UID", amlInt(uint64(i))),
			amlName("_CCA", amlInt(1)),
			amlName("_CRS", amlResources(resMemory32(w.Addr, w.Size), resInterrupt(w.GSI)))))
	}
	if a.SerialPort != 0 {
		devices = append(devices, amlDevice("COM1",
			amlName("_HID", amlEISAID("PNP0501")),
			amlName("_UID", amlInt(0)),
			amlName("_CRS", amlResources(resIO(a.SerialPort, 8), resInterrupt(a.SerialGSI)))))
	}
	devices = append(devices,
		amlDevice("PS2_",
			amlName("_HID", amlEISAID("PNP0303")),
			amlName("_CRS", amlResources(resIO(0x60, 1), resIO(0x64, 1), resInterrupt(a.KeyboardGSI)))),
		amlDevice("PEVT",
			amlName("_HID", amlString("QEMU0001")),
			amlName("_STA", amlInt(0xf)),
			amlName("_CRS", amlResources(resIO(a.PanicPort, 1)))))
	devices = append(devices, a.generation()...)
	return concat(
		amlScope("\\_SB_", devices...),
		amlName("_S5_", amlList(amlInt(SleepTypeS5), amlInt(0), amlInt(0), amlInt(0))))
}

// generation is a VM generation counter and a VMClock, by Firecracker's names, and the Generic Event Device (ACPI 6.5 §5.6.9) that turns an
// interrupt into the notification that the drivers of both wait for: the machine is another one.
func (a *ACPI) generation() [][]byte {
	const counter, clock, changed = "VGEN", "VCLK", 0x80
	return [][]byte{
		amlDevice(counter,
			amlName("_HID", amlString("VMGENCTR")),
			amlName("_CID", amlString("VM_Gen_Counter")),
			amlName("_DDN", amlString("VM_Gen_Counter")),
			amlName("ADDR", amlList(amlInt(GenerationAddr), amlInt(0)))),
		amlDevice(clock,
			amlName("_HID", amlString("AMZNC10C")),
			amlName("_CID", amlString("VMCLOCK")),
			amlName("_DDN", amlString("VMCLOCK")),
			amlName("_CRS", amlResources(resMemory32(ClockAddr, ClockSize)))),
		amlDevice("GED_",
			amlName("_HID", amlString("ACPI0013")),
			amlName("_CRS", amlResources(resInterrupt(a.GenerationGSI))),
			amlMethod("_EVT", 1, amlIfArg0(uint64(a.GenerationGSI), amlNotify(counter, changed), amlNotify(clock, changed)))),
	}
}
