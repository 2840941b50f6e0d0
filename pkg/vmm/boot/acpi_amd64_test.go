package boot

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func testACPI(cpus, windows int) ACPI {
	a := ACPI{CPUs: cpus, SleepControl: 0x600, SleepStatus: 0x601, ResetPort: 0x64, ResetValue: 0xfe, SerialPort: 0x3f8, SerialGSI: 4, KeyboardGSI: 1, PanicPort: 0x505, GenerationGSI: 3}
	for i := range windows {
		a.Windows = append(a.Windows, Window{Addr: 0xc0001000 + uint32(i)*4096, Size: 4096, GSI: 5 + uint32(i)})
	}
	return a
}

func sum(p []byte) (s byte) {
	for _, b := range p {
		s += b
	}
	return s
}

// The tables are found from the RSDP as a kernel does it, and each checksum holds.
func TestACPITables(t *testing.T) {
	m := newMemory(t, testRAM)
	if err := WriteACPI(m, testACPI(32, 19)); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	r := read(t, m, RSDPAddr, 36)
	if string(r[:8]) != "RSD PTR " || sum(r[:20]) != 0 || sum(r) != 0 {
		t.Fatalf("RSDP %x", r)
	}
	table := func(addr uint64, signature string) []byte {
		h := read(t, m, addr, acpiHeaderSize)
		p := read(t, m, addr, uint64(le.Uint32(h[4:])))
		if string(p[:4]) != signature || sum(p) != 0 || addr < acpiAddr || addr+uint64(len(p)) > kernelAddr {
			t.Fatalf("table %q at %#x, %d bytes, checksum %d: want %s", p[:4], addr, len(p), sum(p), signature)
		}
		return p
	}
	xsdt := table(le.Uint64(r[24:]), "XSDT")
	if len(xsdt) != acpiHeaderSize+16 {
		t.Fatalf("XSDT of %d bytes", len(xsdt))
	}
	fadt := table(le.Uint64(xsdt[36:]), "FACP")
	if len(fadt) != 276 || le.Uint32(fadt[112:])>>20&1 != 1 || le.Uint64(fadt[248:]) != 0x600 || le.Uint64(fadt[120:]) != 0x64 || fadt[128] != 0xfe {
		t.Errorf("FADT %x", fadt)
	}
	madt := table(le.Uint64(xsdt[44:]), "APIC")
	if want := acpiHeaderSize + 8 + 32*8 + 12; len(madt) != want {
		t.Errorf("MADT of %d bytes, want %d", len(madt), want)
	}
	dsdt := table(le.Uint64(fadt[140:]), "DSDT")
	if n := bytes.Count(dsdt, []byte("LNRO0005\x00")); n != 19 {
		t.Errorf("%d virtio devices, want 19", n)
	}
	// Top-level terms: a scope whose PkgLength leads to the sleep package, which ends the table.
	body := dsdt[acpiHeaderSize:]
	if body[0] != 0x10 {
		t.Fatalf("DSDT starts with opcode %#x, want a scope", body[0])
	}
	n := 1 + pkgLength(t, body[1:])
	if want := amlName("_S5_", amlList(amlInt(5), amlInt(0), amlInt(0), amlInt(0))); !bytes.Equal(body[n:], want) {
		t.Errorf("behind the scope: %x, want %x", body[n:], want)
	}
}

// The generation counter as a driver looks for it: its identifiers, the id's address in two halves, and the event device's method, which
// notifies it for its interrupt and no other.
func TestACPIGeneration(t *testing.T) {
	a := testACPI(1, 0)
	dsdt := a.dsdt()
	for what, want := range map[string][]byte{
		"_HID":      []byte("\x08_HID\x0dVMGENCTR\x00"),
		"_CID":      []byte("\x08_CID\x0dVM_Gen_Counter\x00"),
		"ADDR":      []byte("\x08ADDR\x12\x08\x02\x0c\xf0\xff\x0d\x00\x00"),
		"the GED":   []byte("\x08_HID\x0dACPI0013\x00\x08_CRS\x11\x0e\x0a\x0b\x89\x06\x00\x03\x01\x03\x00\x00\x00\x79\x00"),
		"_EVT":      []byte("\x14\x26_EVT\x09\xa0\x1f\x93\x68\x0a\x03\x86\\\x2e_SB_VGEN\x0a\x80\x86\\\x2e_SB_VCLK\x0a\x80"),
		"the clock": []byte("\x08_HID\x0dAMZNC10C\x00\x08_CID\x0dVMCLOCK\x00"),
		"its page":  []byte("\x86\x09\x00\x01\x00\xe0\x0d\x00\x00\x10\x00\x00"),
	} {
		if bytes.Count(dsdt, want) != 1 {
			t.Errorf("%s: no %q in %q", what, want, dsdt)
		}
	}
	if ClockAddr < lowRAMEnd || ClockAddr+ClockSize > GenerationAddr || ClockAddr%4096 != 0 {
		t.Errorf("the clock lies at %#x", ClockAddr)
	}
	if GenerationAddr < lowRAMEnd || GenerationAddr+GenerationSize > acpiAddr || GenerationAddr%8 != 0 || GenerationAddr%2048 == 0 {
		t.Errorf("the id lies at %#x", GenerationAddr)
	}
}

// ACPI's own compiler reads what the builder writes, where it is installed.
func TestDSDTDisassembles(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("needs iasl (acpica-tools)")
	}
	a := testACPI(2, 3)
	path := filepath.Join(t.TempDir(), "dsdt.aml")
	if err := os.WriteFile(path, acpiTable("DSDT", 2, a.dsdt()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(iasl, "-d", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(strings.TrimSuffix(path, ".aml") + ".dsl")
	if err != nil {
		t.Fatal(err)
	}
	flat := strings.Join(strings.Fields(string(text)), " ")
	for _, want := range []string{
		"Device (VGEN)", `Name (_HID, "VMGENCTR")`, "0x000DFFF0", "Device (GED)", "Method (_EVT, 1, Serialized)", "If ((Arg0 == 0x03))", `Notify (\_SB.VGEN, 0x80)`, `Notify (\_SB.VCLK, 0x80)`,
		"Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive,", "Device (VR02)", `Name (_S5, Package (0x04)`,
	} {
		if !strings.Contains(flat, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// pkgLength decodes what amlPackage encodes (ACPI 6.5 §20.2.4).
func pkgLength(t *testing.T, p []byte) int {
	t.Helper()
	more := int(p[0] >> 6)
	if more == 0 {
		return int(p[0])
	}
	n := int(p[0] & 0xf)
	for i := range more {
		n |= int(p[1+i]) << (4 + 8*i)
	}
	return n
}

func TestAML(t *testing.T) {
	for _, n := range []int{0, 1, 62, 63, 64, 4093, 4094, 4095, 70000} {
		if p := amlPackage(make([]byte, n)); pkgLength(t, p) != len(p) {
			t.Errorf("body of %d bytes: PkgLength %d, %d bytes in all", n, pkgLength(t, p), len(p))
		}
	}
	if got := amlEISAID("PNP0501"); !bytes.Equal(got, []byte{0x0c, 0x41, 0xd0, 0x05, 0x01}) {
		t.Errorf("EISAID: %x", got)
	}
	if got := amlResources(resIO(0x3f8, 8)); !bytes.Equal(got, []byte{0x11, 0x0d, 0x0a, 0x0a, 0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 0x01, 0x08, 0x79, 0x00}) {
		t.Errorf("resources: %x", got)
	}
}
