package vmmtest

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Init is PID 1 of a guest whose init is the test's program: it mounts what every program needs, runs serve, and powers off. It
// does not return.
func Init(serve func() error) {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			fmt.Println(m[1], err)
		}
	}
	if err := serve(); err != nil {
		fmt.Println("guest:", err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}
