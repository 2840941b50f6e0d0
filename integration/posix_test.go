package integration

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/fcshim/containerd-shim-fc-v2/integration/fscheck"
	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// Where a container of TestPOSIX has its two file systems, and how it is told that it is one.
const (
	posixRoot   = "/posix"
	posixVolume = "/volume"
	posixEnv    = "FC_POSIX_INSIDE"
)

// posixExceptions are checks that behave in another way with this project's runtime than with runc, and why that is so.
var posixExceptions = map[string]string{
	"posix/ACLs":  noACLs,
	"volume/ACLs": noACLs,
}

const noACLs = "Linux 6.1 has access control lists on a virtio-fs itself, and not on the mounts in it, as which a container has its folders"

// posixRootOnly are checks that take long on an emulated CPU: an overlay, which makes up folders of its own, is where they may fail.
var posixRootOnly = []string{"posixtest.DirSeek", "posixtest.ReadDirBasic"}

// posixLeftOut are checks of posixtest that its own runner leaves out.
var posixLeftOut = []string{"FcntlFlockLocksFile", "OpenSymlinkRace"}

// TestPOSIX runs go-fuse's posixtest and this project's fscheck in a container, on its root filesystem and on a volume. Each check
// ends as it does with runc, where the file system is the host's own, or is among posixExceptions.
func TestPOSIX(t *testing.T) {
	c := containerd(t)
	results := map[string]map[string]string{}
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) { results[c.Runtime] = runPOSIX(t, c) })
	runc, fc := results[harness.RuncRuntime], results[harness.FCRuntime]
	for _, name := range slices.Sorted(maps.Keys(runc)) {
		if runc[name] == "FAIL" {
			t.Errorf("%s fails with runc, too", name)
		}
	}
	if fc == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(runc)) {
		reason, excepted := posixExceptions[name]
		switch same := fc[name] == runc[name]; {
		case same && excepted:
			t.Errorf("%s is among the exceptions (%s), and ends as with runc: %s", name, reason, fc[name])
		case !same && !excepted:
			t.Errorf("%s: %s, with runc %s", name, fc[name], runc[name])
		}
	}
}

func runPOSIX(t *testing.T, c *harness.Containerd) map[string]string {
	volume := scratch(t)
	big := filepath.Join(volume, fscheck.Big)
	if err := os.Mkdir(big, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range fscheck.BigEntries {
		write(t, filepath.Join(big, fmt.Sprint(i)), "")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := c.Run(t, harness.Run{Flags: []string{
		"--mount", "type=bind,src=" + self + ",dst=/check,options=bind:ro",
		"--mount", "type=bind,src=" + volume + ",dst=" + posixVolume + ",options=rbind:rw",
		"--env", posixEnv + "=1",
	}, Args: []string{"/check", "-test.run", "^TestPOSIXInside$", "-test.v", "-test.timeout", (2 * long).String()}})
	results := map[string]string{}
	for _, m := range regexp.MustCompile(`--- (PASS|FAIL|SKIP): TestPOSIXInside/(\S+/\S+) \((.*)s\)`).FindAllStringSubmatch(r.Stdout, -1) {
		results[m[2]] = m[1]
		if !strings.HasPrefix(m[3], "0.") {
			t.Logf("%s took %s s", m[2], m[3])
		}
	}
	if want := 2*(len(posixtest.All)-len(posixLeftOut)+len(fscheck.All())) - len(posixRootOnly); len(results) != want {
		t.Fatalf("%d checks ended, want %d: %v", len(results), want, r)
	}
	// What they say is of interest where they fail.
	if r.Status != 0 {
		t.Log(r.Stdout, r.Stderr)
	}
	mapped, err := os.ReadFile(filepath.Join(volume, "MmapShared", "mapped"))
	if err != nil {
		t.Error(err)
	}
	for at, want := range fscheck.MmapWant() {
		if !bytes.HasPrefix(mapped[min(at, len(mapped)):], []byte(want)) {
			t.Errorf("what the container mapped has no %q at %d on the host", want, at)
		}
	}
	return results
}

// TestPOSIXInside is what TestPOSIX runs in its container.
func TestPOSIXInside(t *testing.T) {
	if os.Getenv(posixEnv) == "" {
		t.Skip("runs in a container of TestPOSIX")
	}
	checks := fscheck.All()
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		if !slices.Contains(posixLeftOut, name) {
			checks = append(checks, fscheck.Check{Name: "posixtest." + name, Run: posixtest.All[name]})
		}
	}
	for _, root := range []string{posixRoot, posixVolume} {
		for _, check := range checks {
			if root != posixRoot && slices.Contains(posixRootOnly, check.Name) {
				continue
			}
			t.Run(strings.TrimPrefix(root, "/")+"/"+check.Name, func(t *testing.T) {
				dir := filepath.Join(root, check.Name)
				if err := os.MkdirAll(dir, 0o777); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(dir, 0o777); err != nil {
					t.Fatal(err)
				}
				check.Run(t, dir)
			})
		}
	}
}

// scratch makes a folder on a file system that is like a user's: the system's temporary folder may be a tmpfs or an overlay.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv(harness.EnvScratch), "volume")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
