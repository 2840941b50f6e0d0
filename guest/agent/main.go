// Command agent is PID 1 of the guest: it sets the guest up, calls the shim, and serves it until the shim kills the VM.
//
// The VM is for the shim's containers alone. When the connection to the shim ends, nobody can reach them any more, and the VM
// powers off; when the agent itself fails, it exits, which the kernel answers with a panic, and the VMM reports that apart.
// There is no login, no other service, and no configuration but the kernel's command line: fc_log=debug makes the agent talk
// more, fc_boot_timer=1 has it tell the VMM's boot timer first of all that it runs, fc_free_page_reporting=1 has it set the kernel to
// keep few free pages from the host (the kernel hands what it does not know itself to PID 1 as environment, but for names with a
// dot, which it takes for a module's parameters).
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/guest/clock"
	"github.com/fcshim/containerd-shim-fc-v2/guest/link"
	"github.com/fcshim/containerd-shim-fc-v2/guest/reaper"
	_ "github.com/fcshim/containerd-shim-fc-v2/guest/reexec"
	"github.com/fcshim/containerd-shim-fc-v2/guest/service"
	"github.com/fcshim/containerd-shim-fc-v2/guest/setup"
)

// stateDir is libcontainer's, on a tmpfs.
const stateDir = "/run/containers"

// version is the project's, set by the linker: -X main.version=v1.2.3.
var version = "unknown"

func main() {
	began := time.Now()
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "agent: this is PID 1 of a guest, it sets up the machine it runs on and turns it off when its shim has gone")
		os.Exit(1)
	}
	var bootTimer error
	if os.Getenv("fc_boot_timer") != "" {
		bootTimer = setup.TellBoot()
	}
	// A guest is small, and the agent idles: what it frees should go back soon.
	debug.SetGCPercent(50)
	ctx := context.Background()
	startLog(ctx)
	if bootTimer != nil {
		log.G(ctx).WithError(bootTimer).Warn("the boot timer is not told of the guest's boot")
	}
	if err := run(ctx, began, time.Duration(now.Nano())); err != nil {
		log.G(ctx).WithError(err).Fatal("the agent cannot go on") // exits
	}
	log.G(ctx).WithError(setup.PowerOff()).Fatal("the VM does not power off")
}

// startLog has the log printed by the kernel. /dev is there: the kernel mounts it (CONFIG_DEVTMPFS_MOUNT).
func startLog(ctx context.Context) {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		logrus.SetOutput(kmsg{f})
		logrus.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	}
	level := os.Getenv("fc_log")
	if level == "" {
		level = "warn"
	}
	if err := log.SetLevel(level); err != nil {
		log.G(ctx).WithError(err).Error("fc_log on the kernel's command line")
	}
}

// run works until the shim has gone.
func run(ctx context.Context, began time.Time, started time.Duration) error {
	log.G(ctx).WithField("started", started).Debug("setting the guest up")
	warnings, err := setup.Run()
	for _, w := range warnings {
		log.G(ctx).WithError(w).Warn("set-up")
	}
	if err != nil {
		return fmt.Errorf("set the guest up: %w", err)
	}
	if os.Getenv("fc_free_page_reporting") != "" {
		if err := setup.ShortenFreeLists(); err != nil {
			log.G(ctx).WithError(err).Warn("the host gets less of the free memory back")
		}
	}
	children := reaper.New()
	go children.Run(ctx)
	dial := link.Dialer(link.Vsock)
	keeper, err := clock.Open()
	if err != nil {
		log.G(ctx).WithError(err).Debug("the shim keeps the clock")
	} else {
		go keeper.Run(ctx)
	}
	s, err := service.New(service.Config{
		Version: version, Began: began, Started: started, StateDir: stateDir, Dial: dial, Clock: keeper, Reaper: children, WriteBack: setup.WriteBack,
	})
	if err != nil {
		return err
	}
	go func() { log.G(ctx).WithError(s.Run()).Error("OOM kills are no longer watched") }()
	log.G(ctx).Debug("calling the shim")
	conn, err := dial.Control(ctx)
	if err != nil {
		return err
	}
	log.G(ctx).Debug("serving the shim")
	if err := s.Serve(ctx, conn); err != nil {
		return err
	}
	log.G(ctx).Warn("the shim has gone")
	s.StopAll(ctx)
	return nil
}
