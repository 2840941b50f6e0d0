package harness

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Where ctr looks for CNI, which no flag changes.
const (
	cniPlugins = "/opt/cni/bin"
	cniConfigs = "/etc/cni/net.d"
)

// CNIBridge is the bridge of the network that `ctr run --cni` gives a container after CNI, CNISubnet its addresses.
const (
	CNIBridge = "fctest0"
	CNISubnet = "10.88.77.0/24"
)

const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "fctest",
  "plugins": [
    {
      "type": "bridge", "bridge": "` + CNIBridge + `", "isGateway": true, "ipMasq": true,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "` + CNISubnet + `"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// CNI puts plugins and a network where `ctr run --cni` looks for them, until the test's end. A machine that has any of its own is left
// alone: there the test is skipped.
func (c *Containerd) CNI(t testing.TB) {
	t.Helper()
	for _, dir := range []string{cniPlugins, cniConfigs} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			t.Skipf("this machine uses CNI itself: %s is not empty", dir)
		}
	}
	for _, dir := range []string{filepath.Dir(cniPlugins), cniConfigs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// An empty folder is in the link's way.
	if err := os.Remove(cniPlugins); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(c.Tools, "cni"), cniPlugins); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(cniConfigs, "10-fctest.conflist")
	t.Cleanup(func() {
		for _, path := range []string{cniPlugins, config} {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
		deleteLink(t, CNIBridge)
	})
	if err := os.WriteFile(config, []byte(cniConfig), 0o644); err != nil {
		t.Fatal(err)
	}
}
