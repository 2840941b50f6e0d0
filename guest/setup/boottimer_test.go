package setup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		beInit()
	}
	os.Exit(m.Run())
}

// beInit is this program as PID 1 of a guest.
func beInit() {
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil {
		fmt.Println("mount /dev:", err)
	}
	fmt.Println("told:", TellBoot())
	if f, err := os.OpenFile("/dev/console", os.O_WRONLY, 0); err == nil {
		_ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) // tcdrain(3): what was printed is out before the end
	}
	fmt.Println(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

// The VMM hears of it, through a kernel that guards /dev/mem as strictly as Linux can: Debian's.
func TestTellBoot(t *testing.T) {
	vmmtest.NeedKVM(t)
	args := "console=ttyS0 quiet reboot=k panic=1"
	var console, lines bytes.Buffer
	logger := &logrus.Logger{Out: &lines, Formatter: &logrus.TextFormatter{DisableColors: true}, Level: logrus.InfoLevel, Hooks: logrus.LevelHooks{}}
	m, err := vmm.New(log.WithLogger(context.Background(), logrus.NewEntry(logger)), config.VM{
		Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 256},
		BootSource: &config.BootSource{KernelImagePath: vmmtest.DebianKernel(t), InitrdPath: vmmtest.Self(t), BootArgs: &args},
		BootTimer:  true,
	}, vmm.Options{Console: &console})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-time.After(3 * time.Minute): // the machine may be emulated, and busy
		t.Error("the guest did not end within 3 minutes")
		m.Close()
	}
	if !regexp.MustCompile(`Guest-boot-time = +\d+ us \d+ ms, +\d+ CPU us \d+ CPU ms`).Match(lines.Bytes()) {
		t.Errorf("the VMM was not told of the boot; its log:\n%s\nthe console:\n%s", lines.String(), console.String())
	}
}
