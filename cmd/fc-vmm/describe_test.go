package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// TestConfigFDRefusals: who describes a microVM over a socket hears in full why there is none.
func TestConfigFDRefusals(t *testing.T) {
	dir := t.TempDir()
	none := `{"boot-source": {"kernel_image_path": "` + dir + `/none"}}`
	for _, tt := range []struct {
		name, text, fault string
	}{
		{"nothing", "", "configuration file"},
		{"half of it", none[:len(none)-5], "configuration file"},
		{"no kernel", "{}", "boot-source is missing"},
		{"wrong type", `{"boot-source": {"kernel_image_path": 7}}`, "kernel_image_path is 7: want a string"},
		{"kernel is not there", none, `kernel_image_path is "` + dir + `/none"`},
		{"too long", "{" + strings.Repeat(" ", 1<<20) + "}", "larger than 1048576 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs := socketPair(t)
			p := start(t, []*os.File{theirs}, "--no-api", "--config-fd", "3")
			theirs.Close()
			if err := ours.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			// Of too long a text the end may find nobody.
			if _, err := io.WriteString(ours, tt.text); err != nil && len(tt.text) < 1<<20 {
				t.Fatal(err)
			}
			_ = ours.CloseWrite()
			text, err := io.ReadAll(ours)
			var a config.StartAnswer
			if err == nil {
				err = json.Unmarshal(text, &a)
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(a.Fault, tt.fault) || !a.Invalid {
				t.Errorf("answer %+v, want %q", a, tt.fault)
			}
			if ws, out := p.end(t); ws.ExitStatus() != config.StatusBadConfig || !strings.Contains(out, tt.fault) {
				t.Errorf("status %d:\n%s", ws.ExitStatus(), out)
			}
		})
	}
	if left, err := filepath.Glob(dir + "/*"); err != nil || len(left) != 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestConfigFDLends: with the answer come descriptors, by which others may outlive fc-vmm: KVM's VM, and the TAPs in order.
func TestConfigFDLends(t *testing.T) {
	vmmtest.NeedKVM(t)
	taps := []string{"fclend1", "fclend0"}
	text := `{"boot-source": {"kernel_image_path": "` + kernel(t, "", spin...) + `"}, "machine-config": {"vcpu_count": 1, "mem_size_mib": 64}, "network-interfaces": [
		{"iface_id": "a", "host_dev_name": "` + taps[0] + `"}, {"iface_id": "b", "host_dev_name": "` + taps[1] + `"}]}`
	ours, theirs := socketPair(t)
	p := start(t, []*os.File{theirs}, "--no-api", "--config-fd", "3")
	theirs.Close()
	if err := ours.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := io.WriteString(ours, text)
	if err == nil {
		err = ours.CloseWrite()
	}
	answer, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*8))
	var n, oobn int
	if err == nil {
		n, oobn, _, _, err = ours.ReadMsgUnix(answer, rights)
	}
	if err != nil || string(answer[:n]) != "{}" {
		t.Fatalf("%v, %s", err, answer[:n])
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%v, %v", messages, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1+len(taps) {
		t.Fatalf("%v, %v", fds, err)
	}
	if is, err := os.Readlink(fmt.Sprint("/proc/self/fd/", fds[0])); is != "anon_inode:kvm-vm" {
		t.Errorf("the first is %q, %v", is, err)
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.end(t)
	for i, fd := range fds[1:] {
		ifr, err := unix.NewIfreq("")
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
		}
		if err != nil || ifr.Name() != taps[i] {
			t.Errorf("after fc-vmm's end, TAP %d is %q, %v", i, ifr.Name(), err)
		}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	for _, tap := range taps {
		if _, err := net.InterfaceByName(tap); err == nil {
			t.Errorf("%s is left", tap)
		}
	}
}

// socketPair makes a connection whose other end is for a child.
func socketPair(t *testing.T) (*net.UnixConn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "ours")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn), os.NewFile(uintptr(fds[1]), "theirs")
}
