package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/fscheck"
	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// seenWithin is how long a change made on the host may stay unseen in a container: a second, and a little for the machine.
const seenWithin = time.Second + 200*time.Millisecond

// TestVolumes gives a container each kind of mount that nerdctl has, and looks at them from both sides.
func TestVolumes(t *testing.T) {
	c := containerd(t)
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		base := scratch(t)
		at := func(elem ...string) string { return filepath.Join(append([]string{base}, elem...)...) }
		for _, d := range []string{"rw", "ro/sub", "rro/sub", "slave", "conf/..1", "conf/..2"} {
			if err := os.MkdirAll(at(d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range []string{"ro/sub", "rro/sub", "slave"} {
			mountTmpfs(t, at(d))
		}
		if err := unix.Mount("", at("slave"), "", unix.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(at("slave", "later"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, at("file"), "in a file\n")
		configMap(t, at("conf"))
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}

		n := c.Nerdctl(t, c.Runtime)
		t.Cleanup(func() { n.Must(t, "volume", "rm", "-f", "fctest-named") })
		s := n.Session(t, "--network", "none", "--read-only", "--tmpfs", "/t:size=2m,mode=0751", "--shm-size", "3m",
			"-v", at("rw")+":/rw", "-v", at("ro")+":/ro:ro", "-v", at("rro")+":/rro:rro,rprivate", "-v", at("file")+":/etc/file",
			"-v", at("conf")+":/conf:ro", "-v", at("slave")+":/slave:rslave", "-v", at("slave")+":/private:rprivate",
			"-v", "fctest-named:/named", "-v", "/anon", "-v", self+":/check:ro")
		t.Run("kinds", func(t *testing.T) { volumeKinds(t, n, s, at) })
		t.Run("live", func(t *testing.T) { volumesLive(t, s, at) })
		t.Run("propagation", func(t *testing.T) { volumePropagation(t, s, at) })
	})
}

func volumeKinds(t *testing.T, n *harness.Nerdctl, s *harness.Session, at func(...string) string) {
	const readOnly = "Read-only file system"
	for _, tt := range []struct{ what, script, want string }{
		{"the read-only root", "touch /x", readOnly},
		{"a read-only bind", "touch /ro/x", readOnly},
		{"a mount below it", "touch /ro/sub/x && echo written", "written\n"},
		{"a recursively read-only bind", "touch /rro/x", readOnly},
		{"a mount below that", "touch /rro/sub/x", readOnly},
		{"chmod of what is read-only", "chmod 700 /ro", readOnly},
		{"a file", "cat /etc/file; echo more >>/etc/file; cat /etc/file", "in a file\nin a file\nmore\n"},
		{"a named volume", "echo named >/named/f && cat /named/f", "named\n"},
		{"an anonymous volume", "echo anon >/anon/f && cat /anon/f", "anon\n"},
		{"a tmpfs's mode", "stat -c %a /t", "751\n"},
		{"a tmpfs's size", "df -k /t | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2", "2048\n"},
		{"a full tmpfs", "dd if=/dev/zero of=/t/f bs=1M count=3; rm /t/f", "No space left"},
		{
			"mount points", "for d in / /rw /ro /ro/sub /named /etc; do [ $(stat -c %d $d) = $(stat -c %d $d/..) ] || echo $d; done 2>/dev/null",
			"/rw\n/ro\n/ro/sub\n/named\n",
		},
		{"where a file system begins", "touch /rw/below /named/below; find / -xdev -name below; find /rw /named -xdev -name below; rm /rw/below /named/below", "/rw/below\n/named/below\n"},
		{"shared memory's size", "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2", "3072\n"},
		{"shared memory", "echo shm >/dev/shm/f && cat /dev/shm/f", "shm\n"},
	} {
		if got := s.Do(t, tt.script); got != tt.want && (strings.HasSuffix(tt.want, "\n") || !strings.Contains(got, tt.want)) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
	// What a container has written is on the host at once.
	named := strings.TrimSpace(n.Must(t, "volume", "inspect", "--format", "{{.Mountpoint}}", "fctest-named"))
	for path, want := range map[string]string{
		at("file"): "in a file\nmore\n", at("ro", "sub", "x"): "", filepath.Join(named, "f"): "named\n",
	} {
		if got := describeContent(path); got != want {
			t.Errorf("%s on the host: %q, want %q", filepath.Base(path), got, want)
		}
	}
}

// volumesLive changes on the host, in every way, what the container has looked at before.
func volumesLive(t *testing.T, s *harness.Session, at func(...string) string) {
	write(t, at("file"), "in a file\n")
	for name, content := range map[string]string{
		"rewritten": "old\n", "grown": "old\n", "shrunk": "old and long\n", "replaced": "old\n", "removed": "old\n", "moved": "old\n",
		"open": "old\n", "mode": "old\n", "mapped": "old\n",
	} {
		write(t, at("rw", name), content)
	}
	if err := os.Symlink("rewritten", at("rw", "link")); err != nil {
		t.Fatal(err)
	}
	const look = `for f in /rw/rewritten /rw/grown /rw/shrunk /rw/replaced /rw/removed /rw/moved /rw/new /rw/link /etc/file /conf/key; do
[ -e $f ] && echo "$f $(cat $f)" || echo "$f -"; done; stat -c %a /rw/mode; ls -A /rw | sort | tr '\n' ' '`
	time.Sleep(seenWithin) // files of the tests before
	if got, want := s.Do(t, look), `/rw/rewritten old
/rw/grown old
/rw/shrunk old and long
/rw/replaced old
/rw/removed old
/rw/moved old
/rw/new -
/rw/link old
/etc/file in a file
/conf/key one
644
grown link mapped mode moved open removed replaced rewritten shrunk `; got != want {
		t.Errorf("before: %s, want %s", got, want)
	}
	s.Do(t, "exec 5</rw/open; head -c 1 /rw/open")
	s.Do(t, fscheck.EnvChild+"="+fscheck.Watch+" /check /rw/mapped >/t/watch & for i in $(seq 100); do grep -q mapped /t/watch && break; sleep 0.1; done")

	for name, content := range map[string]string{"rewritten": "new\n", "grown": "new and longer\n", "shrunk": "new\n", "open": "new\n", "mapped": "new\n"} {
		write(t, at("rw", name), content)
	}
	write(t, at("file"), "rewritten in place\n")
	write(t, at("rw", "new"), "new\n")
	write(t, at("rw", "tmp"), "new\n")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Rename(at("rw", "tmp"), at("rw", "replaced")))
	must(os.Remove(at("rw", "removed")))
	must(os.Rename(at("rw", "moved"), at("rw", "there")))
	must(os.Symlink("replaced", at("rw", "tmp")))
	must(os.Rename(at("rw", "tmp"), at("rw", "link")))
	must(os.Chmod(at("rw", "mode"), 0o600))
	must(os.Symlink("..2", at("conf", "tmp")))
	must(os.Rename(at("conf", "tmp"), at("conf", "..data")))
	time.Sleep(seenWithin)
	if got, want := s.Do(t, look), `/rw/rewritten new
/rw/grown new and longer
/rw/shrunk new
/rw/replaced new
/rw/removed -
/rw/moved -
/rw/new new
/rw/link new
/etc/file rewritten in place
/conf/key two
600
grown link mapped mode new open replaced rewritten shrunk there `; got != want {
		t.Errorf("%v after the host's changes: %s, want %s", seenWithin, got, want)
	}
	if got := s.Do(t, "cat <&5"); got != "new\n" {
		t.Errorf("a file that was open meanwhile reads as %q", got)
	}
	if got := s.Do(t, "wait; cat /t/watch"); got != "mapped old\nchanged new\n" {
		t.Errorf("a file that was mapped meanwhile: %q", got)
	}

	// And the other way, without a wait.
	s.Do(t, "echo from inside >/rw/inside; mv /rw/there /rw/back; rm /rw/new; ln -s inside /rw/inner; mkdir -m 0700 /rw/dir; echo more >>/rw/grown")
	for name, want := range map[string]string{
		"inside": "-rw-r--r-- 0:0 from inside\n", "there": "absent", "back": "-rw-r--r-- 0:0 old\n", "new": "absent",
		"inner": "Lrwxrwxrwx 0:0 inside", "dir": "drwx------ 0:0 ", "grown": "-rw-r--r-- 0:0 new and longer\nmore\n",
	} {
		if got := describe(at("rw", name)); got != want {
			t.Errorf("%s on the host: %q, want %q", name, got, want)
		}
	}
}

// volumePropagation mounts something on the host, later, below a folder that the container has twice.
func volumePropagation(t *testing.T, s *harness.Session, at func(...string) string) {
	const look = "ls /slave/later /private/later"
	const before = "/private/later:\n\n/slave/later:\n"
	if got := s.Do(t, look); got != before {
		t.Errorf("before: %q, want %q", got, before)
	}
	if err := unix.Mount("tmpfs", at("slave", "later"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	write(t, at("slave", "later", "f"), "")
	time.Sleep(seenWithin)
	if got, want := s.Do(t, look), before+"f\n"; got != want {
		t.Errorf("after a mount on the host: %q, want %q", got, want)
	}
	// Lazily: while a VM's kernel remembers a file there, the mount is busy.
	if err := unix.Unmount(at("slave", "later"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	time.Sleep(seenWithin)
	if got := s.Do(t, look); got != before {
		t.Errorf("after its end: %q, want %q", got, before)
	}
}

// configMap makes a folder as kubelet does: a file's name leads through a link that is swapped when all of the next version is there.
func configMap(t *testing.T, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "..1", "key"), "one\n")
	write(t, filepath.Join(dir, "..2", "key"), "two\n")
	for link, target := range map[string]string{"..data": "..1", "key": "..data/key"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
}

func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
