package legacy

// SleepControl's fields (ACPI 6.5 §4.8.3.7).
const (
	sleepEnable    = 1 << 5
	sleepTypeShift = 2
	sleepTypeMask  = 7
)

// SleepControl is the sleep control register of hardware-reduced ACPI. Off is called, and must not block, when the guest
// enters the sleep state whose type is TypeS5.
type SleepControl struct {
	TypeS5 byte
	Off    func()
}

// Write carries out a write to the register.
func (s SleepControl) Write(v byte) {
	if v&sleepEnable != 0 && v>>sleepTypeShift&sleepTypeMask == s.TypeS5 {
		s.Off()
	}
}

// Events of pvpanic (QEMU docs/specs/pvpanic.rst).
const (
	pvpanicPanicked    = 1 << 0
	pvpanicCrashLoaded = 1 << 1
)

// PVPanic is the port by which a kernel tells that it has panicked. Panicked is called, and must not block, when it does. A
// kernel that goes on into a crash kernel tells that too, and is left alone.
type PVPanic struct {
	Panicked func()
}

// Read tells the events that the device knows.
func (PVPanic) Read() byte { return pvpanicPanicked | pvpanicCrashLoaded }

// Write carries out a write to the port.
func (p PVPanic) Write(v byte) {
	if v&pvpanicPanicked != 0 {
		p.Panicked()
	}
}
