// Command fc-vmm runs one microVM and offers Firecracker's API for it on a Unix socket. `fc-vmm --help` lists the options.
//
// Its exit status says how the microVM ended:
//
//	 0  the guest rebooted, or fc-vmm was told to stop (SIGTERM, SIGINT)
//	 1  arguments, configuration, socket or host were at fault: no guest ran
//	80  the guest powered off (ACPI S5)
//	81  the guest's kernel panicked, and its pvpanic driver said so; without that driver, a panic is a reboot or a hang
//	82  triple fault, error of KVM, or a stop that did not end in time
//
// Standard output carries the guest's serial console unless the configuration names a file for it; the log goes to
// standard error or to --log-path. A death of the process that holds the other end of --parent-fd kills this one.
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}
