package config

// Exit statuses of a VMM process, part of its interface: by them whoever started it knows how the guest ended.
const (
	// StatusEnded: the guest reset the machine, or the host stopped it in order.
	StatusEnded = 0
	// StatusBadConfig: no guest ran, because of the arguments, the configuration or the host.
	StatusBadConfig = 1
	// StatusPoweredOff: the guest powered the machine off (ACPI S5).
	StatusPoweredOff = 80
	// StatusPanicked: the guest's kernel panicked.
	StatusPanicked = 81
	// StatusBroken: a triple fault, or KVM could not go on.
	StatusBroken = 82
)

// StartAnswer is what a VMM process answers, as JSON, to a description that came over a socket: that the VM runs, or why it does not.
// With the former come descriptors (SCM_RIGHTS): of KVM's VM, and of each network interface's TAP, in their order. Whoever keeps them
// open beyond the VMM's end spares it the tens of milliseconds that the kernel waits for RCU when it destroys these.
type StartAnswer struct {
	// Fault is empty when the VM runs. Its form is that of the API's fault messages.
	Fault string `json:"fault_message,omitempty"`
	// Invalid says that something cannot be had that the description asks for; else the host is at fault.
	Invalid bool `json:"invalid,omitempty"`
}
