package vmm

import (
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/legacy"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/mmio"
)

// I/O ports and interrupts of the legacy devices.
const (
	serialPort  = 0x3f8
	serialGSI   = 4
	keyboardGSI = 1
	// generationGSI is COM2's on a PC, which is not here.
	generationGSI = 3
	panicPort     = 0x505
	sleepControl  = 0x600
	sleepStatus   = 0x601
)

// MMIO. Windows of virtio devices follow the boot timer's, a page each; their GSIs count from firstGSI.
const (
	bootTimerAddr = 0xc0000000
	virtioAddr    = 0xc0001000
	firstGSI      = 5
	lastGSI       = 23
)

// handleIO carries out a port access: the bytes of one access go to consecutive ports, the accesses of a string
// instruction to the same.
func (m *Machine) handleIO(io kvm.IO) {
	for i := range io.Data {
		port := io.Port + uint16(i%io.Size)
		if io.Write {
			m.portWrite(port, io.Data[i])
		} else {
			io.Data[i] = m.portRead(port)
		}
	}
}

func (m *Machine) portRead(port uint16) byte {
	switch {
	case port >= serialPort && port < serialPort+legacy.SerialPorts:
		return m.serial.Read(port - serialPort)
	case port == legacy.I8042Data || port == legacy.I8042Command:
		return m.i8042.Read(port)
	case port == panicPort:
		return m.pvpanic.Read()
	case port == sleepControl || port == sleepStatus:
		return 0
	}
	return legacy.NoData
}

func (m *Machine) portWrite(port uint16, v byte) {
	switch {
	case port >= serialPort && port < serialPort+legacy.SerialPorts:
		m.serial.Write(port-serialPort, v)
	case port == legacy.I8042Data || port == legacy.I8042Command:
		m.i8042.Write(port, v)
	case port == panicPort:
		m.pvpanic.Write(v)
	case port == sleepControl:
		m.sleep.Write(v)
	}
}

// handleMMIO carries out an access outside guest RAM. What nobody answers reads as ones.
func (m *Machine) handleMMIO(a kvm.MMIO) {
	if a.Addr >= virtioAddr {
		n := (a.Addr - virtioAddr) / mmio.WindowSize
		if n < uint64(len(m.devices)) {
			off := (a.Addr - virtioAddr) % mmio.WindowSize
			if a.Write {
				m.devices[n].transport.Write(off, a.Data)
			} else {
				m.devices[n].transport.Read(off, a.Data)
			}
			return
		}
	}
	if !a.Write {
		for i := range a.Data {
			a.Data[i] = legacy.NoData
		}
		return
	}
	if m.bootTimer != nil && a.Addr >= bootTimerAddr && a.Addr < virtioAddr {
		m.bootTimer.Write(a.Addr-bootTimerAddr, a.Data)
	}
}
