package integration

import (
	"io"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// TestFreePageReporting has a container fill its /dev/shm and empty it again: with free_page_reporting the host has the memory back.
func TestFreePageReporting(t *testing.T) {
	c := containerd(t)
	if !c.FC() {
		t.Skip("needs a VM")
	}
	const mib = 60 // of 64 in /dev/shm
	in, out := io.Pipe()
	defer out.Close()
	config := c.Config(t, harness.Settings{"memory_mib": 256, "free_page_reporting": true})
	task := c.StartTask(t, config, in, oci.WithProcessArgs("sh", "-c",
		`echo "fraction $(cat /proc/sys/vm/percpu_pagelist_high_fraction)"; dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; echo filled; read go; rm /dev/shm/x; echo freed; read go`))
	ram := func() int64 { return c.Usages(t, task.ID())[harness.VMM].GuestRAM >> 20 }
	task.Stdout.Await(t, "fraction 1024\n", harness.Slow(time.Minute)) // the agent has set that
	task.Stdout.Await(t, "filled", harness.Slow(time.Minute))
	full := ram()
	if full < mib {
		t.Fatalf("%d MiB of the guest's RAM are in use, and %d of its /dev/shm", full, mib)
	}
	io.WriteString(out, "go\n")
	task.Stdout.Await(t, "freed", harness.Slow(time.Minute))
	begin := time.Now()
	for ; ram() > full-mib*3/4; time.Sleep(100 * time.Millisecond) {
		if time.Since(begin) > harness.Slow(time.Minute) {
			t.Fatalf("of %d MiB of the guest's RAM %d are still in use after it has freed %d", full, ram(), mib)
		}
	}
	t.Logf("%d MiB of the guest's RAM were in use, %d are %v after it has freed %d", full, ram(), time.Since(begin), mib)
	io.WriteString(out, "go\n")
	if status := task.Await(t, harness.Slow(time.Minute)); status != 0 {
		t.Errorf("status %d", status)
	}
}
