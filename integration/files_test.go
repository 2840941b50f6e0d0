package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// TestSnapshot writes files in a container, and looks for them in its snapshot on the host.
func TestSnapshot(t *testing.T) {
	c := containerd(t)
	id := c.ID(t)
	const script = `
set -e
echo some text >/root/text; chmod 0640 /root/text; chown 1000:2000 /root/text
mkdir -p /a/b; ln -s ../text /a/b/link; ln /root/text /a/hard
head -c 5000000 /dev/zero | tr '\0' z >/a/big
rm /etc/group; mkfifo /a/fifo; mv /etc/passwd /etc/renamed
`
	r := c.Run(t, harness.Run{ID: id, Keep: true, Args: []string{"sh", "-c", script}})
	t.Cleanup(func() { c.Must(t, "container", "rm", id) })
	if r.Status != 0 {
		t.Fatal(r)
	}
	mounts, err := c.Client().SnapshotService("").Mounts(c.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	err = mount.WithReadonlyTempMount(c.Context(), mounts, func(root string) error {
		for path, want := range map[string]string{
			"root/text":   "-rw-r----- 1000:2000 some text\n",
			"a/hard":      "-rw-r----- 1000:2000 some text\n",
			"a/b/link":    "Lrwxrwxrwx 0:0 ../text",
			"a/big":       "-rw-r--r-- 0:0 " + strings.Repeat("z", 5000000),
			"a/fifo":      "prw-r--r-- 0:0 ",
			"etc/group":   "absent",
			"etc/passwd":  "absent",
			"bin/busybox": "-rwxr-xr-x 0:0 ",
		} {
			if got := describe(filepath.Join(root, path)); !strings.HasPrefix(got, want) || path != "bin/busybox" && got != want {
				t.Errorf("%s in the snapshot: %s, want %s", path, clip(got), clip(want))
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// describe tells a file's mode, owner and contents.
func describe(path string) string {
	fi, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return "absent"
	}
	if err != nil {
		return err.Error()
	}
	var content []byte
	switch {
	case fi.Mode().IsRegular():
		content, err = os.ReadFile(path)
	case fi.Mode()&os.ModeSymlink != 0:
		var s string
		s, err = os.Readlink(path)
		content = []byte(s)
	}
	if err != nil {
		return err.Error()
	}
	st := fi.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%v %d:%d %s", fi.Mode(), st.Uid, st.Gid, content)
}

// TestBindMounts shares folders and a file with a container, and looks at changes from both sides while it runs.
func TestBindMounts(t *testing.T) {
	c := containerd(t)
	rw, ro := t.TempDir(), t.TempDir()
	file := filepath.Join(t.TempDir(), "file")
	for _, f := range []string{filepath.Join(ro, "given"), file, filepath.Join(filepath.Dir(file), "secret")} {
		write(t, f, filepath.Base(f)+"\n")
	}
	id := c.ID(t)
	b := c.Background(t, nil, c.RunArgs(t, harness.Run{ID: id, Flags: []string{
		"--mount", "type=bind,src=" + rw + ",dst=/rw,options=rbind:rw",
		"--mount", "type=bind,src=" + ro + ",dst=/ro,options=rbind:ro",
		"--mount", "type=bind,src=" + file + ",dst=/etc/file,options=bind:ro",
	}, Args: []string{"sh", "-c", `
cat /ro/given /etc/file; ls /etc/secret 2>/dev/null
touch /ro/new 2>/dev/null || echo ro is read-only
echo x 2>/dev/null >>/etc/file || echo file is read-only
echo inside >/rw/inside
until [ -e /rw/outside ]; do sleep 0.1; done; cat /rw/outside
until grep -q changed /ro/given; do sleep 0.1; done; cat /ro/given
mv /rw/outside /rw/moved; rm /rw/inside`}})...)
	await(t, "the container's file on the host", func() bool { return describeContent(filepath.Join(rw, "inside")) == "inside\n" })
	write(t, filepath.Join(rw, "outside"), "outside\n")
	// As kubelet changes a ConfigMap: by a rename.
	write(t, filepath.Join(ro, "new"), "changed\n")
	if err := os.Rename(filepath.Join(ro, "new"), filepath.Join(ro, "given")); err != nil {
		t.Fatal(err)
	}
	r := b.Wait(t, long)
	const want = "given\nfile\nro is read-only\nfile is read-only\noutside\nchanged\n"
	if r.Status != 0 || r.Stdout != want {
		t.Errorf("want %q; got %v", want, r)
	}
	if got := describeContent(filepath.Join(rw, "moved")); got != "outside\n" {
		t.Errorf("the file moved in the container holds %q", got)
	}
	if _, err := os.Lstat(filepath.Join(rw, "inside")); !os.IsNotExist(err) {
		t.Errorf("the file removed in the container: %v", err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func describeContent(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
