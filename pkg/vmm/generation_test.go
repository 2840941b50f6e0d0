package vmm

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/boot"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// A guest finds its generation id and VMClock through ACPI, and is told of each change by an interrupt that the event device's driver takes.
func TestKernelGeneration(t *testing.T) {
	vmmtest.NeedKVM(t)
	const script = `
exec >/dev/console
for d in /sys/bus/acpi/devices/*; do case "$(cat $d/hid 2>/dev/null)" in VMGENCTR) echo "counter: $(cat $d/path) $(cat $d/modalias)";; AMZNC10C) echo "clock: $(cat $d/path) $(cat $d/modalias)";; ACPI0013) echo "events: $(cat $d/path)";; esac; done
id() { dd if=/dev/mem bs=16 skip=57343 count=1 2>/dev/null | hexdump -v -e '/1 "%02x"'; }
clock() { dd if=/dev/mem bs=4096 skip=222 count=1 2>/dev/null | hexdump -v -n 112 -e '/1 "%02x"'; }
told() { grep ACPI:Ged /proc/interrupts | awk '{print $2+$3}'; }
echo "id: $(id) clock: $(clock) told: $(told)"
n=0
while [ $n -lt 2 ]; do
	if [ "$(told)" != "$n" ]; then n=$(told); echo "id: $(id) clock: $(clock) told: $n"; fi
done
sleep 0.2`
	if boot.GenerationAddr != 57343*16 || boot.ClockAddr != 222*4096 {
		t.Fatalf("the script looks elsewhere than at %#x and %#x", boot.GenerationAddr, boot.ClockAddr)
	}
	m, out := startKernel(t, config.VM{
		Machine:    config.Machine{VCPUCount: 2, MemSizeMiB: 128},
		BootSource: bootSource(vmmtest.Kernel(t), vmmtest.Busybox(t, script)),
	})
	lines := func() [][]string {
		return regexp.MustCompile(`id: ([0-9a-f]{32}) clock: ([0-9a-f]{224}) told: (\d+)`).FindAllStringSubmatch(out.String(), -1)
	}
	seen := []string{""}
	for n := range 3 {
		for end := time.Now().Add(bootTimeout); len(lines()) <= n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the guest did not tell of its id number %d within %s", n, bootTimeout)
			}
		}
		l := lines()[n]
		if slices.Contains(seen, l[1]) || l[3] != strconv.Itoa(n) {
			t.Errorf("%q, after the ids %q", l[0], seen)
		}
		seen = append(seen, l[1])
		// Magic, size, version, no counter; twice the count; the count; flags; to the end nothing but the count again.
		if want := fmt.Sprintf("56434c4b"+"00100000"+"0100ff00"+"%02x000000"+"%02x00000000000000"+"0003000000000000"+strings.Repeat("00", 72)+"%02x00000000000000", 2*n, n, n); l[2] != want {
			t.Errorf("the clock is %s, want %s", l[2], want)
		}
		if n == 2 {
			break
		}
		if got := hex.EncodeToString(m.generation.id); got != l[1] {
			t.Errorf("the guest reads %s, and it is %s", l[1], got)
		}
		ctx := context.Background()
		if err := m.newGeneration(); err == nil {
			t.Error("a machine that runs has a new generation")
		}
		if err := m.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.newGeneration(); err != nil {
			t.Fatal(err)
		}
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if e := waitKernel(t, m); e.Reason != PoweredOff {
		t.Errorf("ended with %v", e)
	}
	if text := out.String(); !strings.Contains(text, `counter: \_SB_.VGEN acpi:VMGENCTR:VM_GEN_COUNTER:`) || !strings.Contains(text, `events: \_SB_.GED_`) ||
		!strings.Contains(text, `clock: \_SB_.VCLK acpi:AMZNC10C:VMCLOCK:`) {
		t.Error("the guest does not see the three devices")
	}
	if err := m.newGeneration(); err == nil {
		t.Error("a machine that has ended has a new generation")
	}
}

// The id is there before the guest is, and no two machines have the same.
func TestGeneration(t *testing.T) {
	vmmtest.NeedKVM(t)
	var ids [][]byte
	for range 2 {
		m, _ := build(t, vmmtest.ELF(halt), 64, 1)
		p, err := m.mem.Slice(boot.GenerationAddr, boot.GenerationSize)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.newGeneration(); err == nil {
			t.Error("a machine that was not started has a second generation")
		}
		ids = append(ids, bytes.Clone(p))
	}
	if bytes.Equal(ids[0], ids[1]) || bytes.Equal(ids[0], make([]byte, 16)) {
		t.Errorf("ids %x", ids)
	}
}
