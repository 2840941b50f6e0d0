package integration

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// TestCopy copies into a container and out of it, and takes images and archives of it while it runs and afterwards.
func TestCopy(t *testing.T) {
	c := containerd(t)
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		base := scratch(t)
		at := func(elem ...string) string { return filepath.Join(append([]string{base}, elem...)...) }
		for _, d := range []string{"vol", "dir/sub"} {
			if err := os.MkdirAll(at(d), 0o750); err != nil {
				t.Fatal(err)
			}
		}
		write(t, at("file"), "from the host\n")
		write(t, at("dir", "sub", "f"), "deep\n")
		if err := errors.Join(os.Symlink("sub/f", at("dir", "link")), unix.Chmod(at("dir", "sub", "f"), 0o4750)); err != nil {
			t.Fatal(err)
		}
		n := c.Nerdctl(t, c.Runtime)
		s := n.Session(t, "--network", "none", "-v", at("vol")+":/vol", "--tmpfs", "/t")
		copyRunning(t, n, s, at)
		takeRunning(t, c, n, s, at)
		n.Must(t, "stop", "--time", "1", s.Name)
		for _, cp := range [][2]string{{at("file"), s.Name + ":/root/late"}, {s.Name + ":/root/late", at("late")}} {
			n.Must(t, "cp", cp[0], cp[1])
		}
		if got := describeContent(at("late")); got != "from the host\n" {
			t.Errorf("copied in and out when the container had stopped: %q", got)
		}
	})
}

func copyRunning(t *testing.T, n *harness.Nerdctl, s *harness.Session, at func(...string) string) {
	s.Do(t, "ls /root /vol; echo made inside >/root/made; mkdir /root/tree; echo leaf >/root/tree/leaf; ln -s leaf /root/tree/l; chown 12:34 /root/tree/leaf")
	for _, cp := range [][2]string{
		{at("file"), s.Name + ":/root/file"}, {at("dir"), s.Name + ":/root/dir"}, {at("file"), s.Name + ":/vol/file"},
		{s.Name + ":/root/made", at("made")}, {s.Name + ":/root/tree", at("tree")}, {s.Name + ":/vol/file", at("again")},
	} {
		n.Must(t, "cp", cp[0], cp[1])
	}
	time.Sleep(seenWithin)
	const script = "cat /root/file /vol/file /root/dir/link; stat -c '%a %n' /root/dir/sub/f; readlink /root/dir/link"
	if got, want := s.Do(t, script), "from the host\nfrom the host\ndeep\n4750 /root/dir/sub/f\nsub/f\n"; got != want {
		t.Errorf("copied in: %q, want %q", got, want)
	}
	for name, want := range map[string]string{
		"made": "made inside\n", "tree/leaf": "leaf\n", "tree/l": "leaf\n", "again": "from the host\n", "vol/file": "from the host\n",
	} {
		if got := describeContent(at(name)); got != want {
			t.Errorf("%s, copied out: %q, want %q", name, got, want)
		}
	}
}

// takeRunning takes what has been written a moment ago, and not yet to any disk.
func takeRunning(t *testing.T, c *harness.Containerd, n *harness.Nerdctl, s *harness.Session, at func(...string) string) {
	s.Do(t, "rm /etc/group; echo fresh >/fresh; echo hidden >/vol/hidden; echo hidden >/t/hidden; chmod 0604 /fresh")
	image := "fctest/committed:" + s.Name
	n.Must(t, "commit", s.Name, image)
	t.Cleanup(func() { n.Must(t, "rmi", "-f", image) })
	const script = "cat /fresh; stat -c %a /fresh; ls /etc/group /vol /t 2>/dev/null"
	r := c.Must(t, "run", "--rm", "--runtime", harness.RuncRuntime, "docker.io/"+image, c.ID(t), "sh", "-c", script+" ||:")
	if want := "fresh\n604\n/t:\n\n/vol:\n"; r != want {
		t.Errorf("the committed image has %q, want %q", r, want)
	}

	diff := strings.Fields(n.Must(t, "diff", s.Name))
	for _, want := range []string{"A /fresh", "D /etc/group", "A /root/made", "A /root/dir/sub/f"} {
		if !strings.Contains(strings.Join(diff, " ")+" ", want+" ") {
			t.Errorf("nerdctl diff has no %q: %q", want, diff)
		}
	}
	if slices.Contains(diff, "/vol/hidden") || slices.Contains(diff, "/t/hidden") {
		t.Errorf("nerdctl diff shows what is in mounts: %q", diff)
	}

	n.Must(t, "export", "-o", at("export.tar"), s.Name)
	got := map[string]string{}
	f, err := os.Open(at("export.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(io.LimitReader(r, 100))
		if err != nil {
			t.Fatal(err)
		}
		got[strings.TrimPrefix(h.Name, "./")] = string(b)
	}
	for name, want := range map[string]string{"fresh": "fresh\n", "root/made": "made inside\n", "root/tree/leaf": "leaf\n"} {
		if got[name] != want {
			t.Errorf("the export's %s: %q, want %q", name, got[name], want)
		}
	}
	if _, ok := got["etc/group"]; ok {
		t.Error("the export has a file that was removed")
	}
}
