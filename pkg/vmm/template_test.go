package vmm

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

func bitmap32(t *testing.T, text string) (b config.Bitmap[uint32]) {
	t.Helper()
	if err := b.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return b
}

// template hides SHA, ADX and RDSEED, shows a bit that no CPU has (leaf 7, ebx, 22), and sets three registers: PAT's highest entry and the
// first fixed MTRR, which nobody sets otherwise, and SYSENTER_CS, which the boot sets to 0.
func template(t *testing.T) *config.CPUConfig {
	return &config.CPUConfig{
		KVMCapabilities: []config.KVMCapability{{Number: 0}, {Number: 33, Remove: true}},
		CPUIDModifiers: []config.CPUIDModifier{{Leaf: 7, Flags: 1, Modifiers: []config.RegisterModifier{
			{Register: "ebx", Bitmap: bitmap32(t, "0b0_xxxxxx1_xx00xx_xxxxxxxx_xxxxxxxx")},
		}}},
		MSRModifiers: []config.MSRModifier{
			{Addr: 0x277, Bitmap: config.Bitmap[uint64]{Mask: 7 << 56, Value: 6 << 56}},
			{Addr: 0x250, Bitmap: config.Bitmap[uint64]{Mask: 0xff, Value: 6}},
			{Addr: 0x174, Bitmap: config.Bitmap[uint64]{Mask: 0xff, Value: 8}},
		},
	}
}

// Two vCPUs of a guest of a few bytes execute CPUID and RDMSR, and see what a template makes of them.
func TestTemplateInGuest(t *testing.T) {
	vmmtest.NeedKVM(t)
	const (
		trampoline = 0x8000 // where the second vCPU starts, in real mode
		results    = 0xa000 // for each vCPU: ebx of leaf 7, a word that says that all is there, and three MSRs
		size       = 32
		icr        = 0xfee00300 // the local APIC's register of interrupt commands
		eax        = 0
		edx        = 2
		ebx        = 3
	)
	le := binary.LittleEndian
	// program is code for 32 bits, or for 16 bits with prefixes that make it work on 32.
	program := func(real bool, at uint32) []byte {
		var prefix []byte
		direct := func(register byte, addr uint32) []byte { return le.AppendUint32([]byte{0x89, register<<3 | 5}, addr) }
		if real {
			prefix = []byte{0x66}
			direct = func(register byte, addr uint32) []byte {
				return le.AppendUint16([]byte{0x89, register<<3 | 6}, uint16(addr))
			}
		}
		set := func(register byte, v uint32) []byte { return le.AppendUint32(join(prefix, []byte{0xb8 + register}), v) } // mov register, v
		store := func(register byte, addr uint32) []byte { return join(prefix, direct(register, addr)) }                 // mov [addr], register
		code := join(set(eax, 7), set(1, 0), []byte{0x0f, 0xa2}, store(ebx, at))                                         // cpuid
		for i, msr := range []uint32{0x277, 0x250, 0x174} {
			code = join(code, set(1, msr), []byte{0x0f, 0x32}, store(eax, at+8+8*uint32(i)), store(edx, at+12+8*uint32(i))) // rdmsr
		}
		return join(code, set(eax, 1), store(eax, at+4), halt)
	}
	command := func(v uint32) []byte { return le.AppendUint32(le.AppendUint32([]byte{0xc7, 0x05}, icr), v) } // mov dword [icr], v
	const toOthers, initCPU, startCPU = 3 << 18, 5<<8 | 1<<14, 6<<8 | 1<<14
	kernel := join(command(toOthers|initCPU), []byte{0xb9, 0, 0, 1, 0, 0xe2, 0xfe}, // mov ecx, 65536; loop
		command(toOthers|startCPU|trampoline>>12), program(false, results))

	run := func(template *config.CPUConfig) [2][size]byte {
		m := describe(t, kernel, config.VM{Machine: config.Machine{VCPUCount: 2, MemSizeMiB: 64}, CPUConfig: template})
		ram := func(at, n uint64) []byte {
			p, err := m.mem.Slice(at, n)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		copy(ram(trampoline, 256), program(true, results+size))
		if err := m.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		r := ram(results, 2*size)
		waitFor(t, func() bool { return le.Uint32(r[4:]) == 1 && le.Uint32(r[size+4:]) == 1 })
		return [2][size]byte{[size]byte(r[:size]), [size]byte(r[size:])}
	}
	plain, changed := run(nil), run(template(t))
	for id := range 2 {
		was, is := plain[id][:], changed[id][:]
		if got, want := le.Uint32(is), le.Uint32(was)&^(1<<29|1<<19|1<<18)|1<<22; got != want {
			t.Errorf("vCPU %d: leaf 7 has ebx %#x, without the template %#x", id, got, le.Uint32(was))
		}
		for i, want := range []uint64{le.Uint64(was[8:])&^(7<<56) | 6<<56, le.Uint64(was[16:])&^0xff | 6, 0} {
			if got := le.Uint64(is[8+8*i:]); got != want {
				t.Errorf("vCPU %d: MSR %d is %#x, without the template %#x", id, i, got, le.Uint64(was[8+8*i:]))
			}
		}
		if le.Uint32(was)&(1<<22) != 0 || le.Uint64(was[8:])>>56&7 == 6 || le.Uint64(was[16:])&0xff == 6 {
			t.Errorf("vCPU %d has it all without a template: %x", id, was)
		}
	}
	if plain[0] != plain[1] || changed[0] != changed[1] {
		t.Errorf("the vCPUs differ: %x, %x", plain, changed)
	}
}

// describe makes a machine with a kernel of a few bytes.
func describe(t *testing.T, kernel []byte, cfg config.VM) *Machine {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, vmmtest.ELF(kernel), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.BootSource = &config.BootSource{KernelImagePath: path}
	m, err := New(context.Background(), cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// What the host has not is named, and the machine is not made.
func TestTemplateRefused(t *testing.T) {
	vmmtest.NeedKVM(t)
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, vmmtest.ELF(halt), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  config.VM
		want string
	}{
		{"leaf", config.VM{CPUConfig: &config.CPUConfig{CPUIDModifiers: []config.CPUIDModifier{{Leaf: 0x12345}}}},
			"cpu-config/cpuid_modifiers[0] is for leaf 0x12345, subleaf 0x0: want a leaf of CPUID that this host's KVM supports"},
		{"MSR", config.VM{CPUConfig: &config.CPUConfig{MSRModifiers: []config.MSRModifier{{Addr: 0x10}, {Addr: 0xfffffff0}}}},
			"vCPU 0: cpu-config/msr_modifiers: KVM_GET_MSRS: MSR 0xfffffff0: this host's KVM has no such register"},
		{"MSR's value", config.VM{CPUConfig: &config.CPUConfig{MSRModifiers: []config.MSRModifier{{Addr: 0x277, Bitmap: config.Bitmap[uint64]{Mask: ^uint64(0), Value: 2}}}}},
			"vCPU 0: cpu-config/msr_modifiers: KVM_SET_MSRS: MSR 0x277 = 0x2: this host's KVM refuses it"},
		{"capability", config.VM{CPUConfig: &config.CPUConfig{KVMCapabilities: []config.KVMCapability{{Number: 65535}}}},
			"cpu-config/kvm_capabilities is 65535: want a capability that this host's KVM has"},
		// No host fits both.
		{"T2A", config.VM{Machine: config.Machine{CPUTemplate: "T2A"}}, "want a"},
		{"T2CL", config.VM{Machine: config.Machine{CPUTemplate: "T2CL"}}, "want a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.BootSource = &config.BootSource{KernelImagePath: path}
			m, err := New(context.Background(), c.cfg, Options{})
			if err == nil {
				m.Close()
				if c.want == "want a" {
					t.Skip("this host is one that the template is for")
				}
				t.Fatal("no error")
			}
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %q", err, c.want)
			}
			t.Log(err)
		})
	}
}

// What a kernel makes of all that: features, the brand, who shares a core and a cache.
func TestKernelCPU(t *testing.T) {
	vmmtest.NeedKVM(t)
	const script = `
exec >/dev/console
cd /sys/devices/system/cpu
for i in 0 1 2 3; do
	echo "siblings of $i: $(cat cpu$i/topology/thread_siblings_list) of $(cat cpu$i/topology/core_siblings_list) core $(cat cpu$i/topology/core_id)"
	for c in cpu$i/cache/index*; do echo "L$(cat $c/level) of $i: $(cat $c/shared_cpu_list)"; done
done
echo "features: $(grep ^flags /proc/cpuinfo | sort | uniq -c)"
grep "model name" /proc/cpuinfo | sort | uniq -c
sleep 0.2`
	for _, c := range []struct {
		smt      bool
		siblings []string // of each vCPU
		cores    []string
	}{
		{true, []string{"0-1", "0-1", "2-3", "2-3"}, []string{"0", "0", "1", "1"}},
		{false, []string{"0", "1", "2", "3"}, []string{"0", "1", "2", "3"}},
	} {
		t.Run(map[bool]string{true: "smt", false: "no smt"}[c.smt], func(t *testing.T) {
			m, out := startKernel(t, config.VM{
				Machine:    config.Machine{VCPUCount: 4, MemSizeMiB: 128, SMT: c.smt},
				CPUConfig:  template(t),
				BootSource: bootSource(vmmtest.Kernel(t), vmmtest.Busybox(t, script)),
			})
			if e := waitKernel(t, m); e.Reason != PoweredOff {
				t.Errorf("ended with %v", e)
			}
			text := strings.ReplaceAll(out.String(), "\r", "")
			for i, s := range c.siblings {
				if want := fmt.Sprintf("siblings of %d: %s of 0-3 core %s\n", i, s, c.cores[i]); !strings.Contains(text, want) {
					t.Errorf("no %q", want)
				}
				for _, l := range regexp.MustCompile(fmt.Sprintf(`L(\d) of %d: (.*)\n`, i)).FindAllStringSubmatch(text, -1) {
					if want := map[string]string{"1": s, "2": s, "3": "0-3"}[l[1]]; l[2] != want {
						t.Errorf("L%s of vCPU %d is shared by %s, want %s", l[1], i, l[2], want)
					}
				}
			}
			features := regexp.MustCompile(`features: +4 flags\s*:(.*)\n`).FindStringSubmatch(text)
			if features == nil {
				t.Fatal("the vCPUs do not have the same features")
			}
			for _, f := range strings.Fields(features[1]) {
				if f == "sha_ni" || f == "adx" || f == "rdseed" {
					t.Errorf("%s is not hidden", f)
				}
			}
			if !regexp.MustCompile(`4 model name\s*: (AMD EPYC|Intel\(R\) Xeon\(R\) Processor( @ [0-9.]+.Hz)?)\n`).MatchString(text) {
				t.Error("not the brand of one for all")
			}
		})
	}
}
