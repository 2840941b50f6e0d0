package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// exampleInit is PID 1 of the guest that the documents' examples start.
const exampleInit = `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox echo init is up >/dev/console
while /bin/busybox sleep 1000; do :; done
`

// examplePrelude makes a shell fit for the documents' examples: a request waits for the API's socket, fails the script if it is refused,
// and returns from a start when the guest is up.
const examplePrelude = `set -e
trap 'kill $(jobs -p) 2>/dev/null || :; wait' EXIT
wait_for() { for _ in $(seq 1200); do ! eval "$2" || return 0; sleep 0.1; done; echo "waited 120 s for $1"; exit 1; }
curl() {
	wait_for "the API" 'command curl -s -o answer --unix-socket fc.sock http://localhost/'
	echo "+ curl $*" >&2
	command curl --fail-with-body --max-time 60 "$@"
	case $* in *InstanceStart*) wait_for "the guest" 'grep -q "init is up" console' ;; esac
}
`

// example is a fence of a document: commands for a shell.
type example struct {
	where string
	text  string
}

var (
	fence = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	// request is a line that sends one, by curl or by the functions that README defines with it.
	request = regexp.MustCompile(`(?m)^(put|patch|get|delete|curl .*--unix-socket) `)
	starts  = regexp.MustCompile(`(?m)^(fc-vmm --.*)&$`)
	// serves starts a file server, whose socket has to be waited for, as people do.
	serves = regexp.MustCompile(`(?m)^(fc-vmm fs .*--socket-path (\S+).*&)$`)
	// configures is a request for which the microVM must not have been started.
	configures = regexp.MustCompile(`(?m)^(put (?:[b-z]|a[a-bd-z])|patch machine-config|delete )`)
	startLine  = regexp.MustCompile(`(?m)^put actions .*InstanceStart.*\n`)
)

// examples gives the fences of a document that send requests to fc-vmm.
func examples(t *testing.T, path string) (list []example) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range fence.FindAllSubmatchIndex(text, -1) {
		e := example{fmt.Sprintf("%s:%d", filepath.Base(path), strings.Count(string(text[:at[0]]), "\n")+1), string(text[at[2]:at[3]])}
		if request.MatchString(e.text) {
			list = append(list, e)
		}
	}
	return list
}

// TestExamples runs the documents' examples as they stand, in their order: the first starts fc-vmm and a guest. One that configures a
// microVM gets one of its own, configured by the first one's requests, too; the others go on with the one that there is.
func TestExamples(t *testing.T) {
	tools := needVMM(t)
	for _, program := range []string{"bash", "curl", "mke2fs"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	documents, _ := filepath.Glob("../docs/*.md")
	var all []example
	for _, d := range append([]string{"../README.md"}, documents...) {
		all = append(all, examples(t, d)...)
	}
	if len(all) < 2 || !starts.MatchString(all[0].text) || !startLine.MatchString(all[0].text) {
		t.Fatalf("%d examples found, of which the first does not start fc-vmm and a guest", len(all))
	}
	// What the first one does, but for the start, and the functions that any of them defines.
	base := startLine.ReplaceAllString(all[0].text, "")
	functions := regexp.MustCompile(`(?m)^[a-z]+\(\) \{.*\}$`)
	var scripts []string
	var names []string
	for i, e := range all {
		switch {
		case i == 0:
			scripts, names = append(scripts, e.text), append(names, e.where)
		case configures.MatchString(e.text):
			scripts, names = append(scripts, base+e.text), append(names, e.where)
		default:
			last := &scripts[len(scripts)-1]
			if !startLine.MatchString(*last) {
				*last += strings.TrimSpace(startLine.FindString(all[0].text)) + "\n"
			}
			*last += e.text
			names[len(names)-1] += " " + e.where
		}
		base += strings.Join(functions.FindAllString(e.text, -1), "\n") + "\n"
	}
	for i := range scripts {
		t.Run(names[i], func(t *testing.T) { runExample(t, tools, scripts[i]) })
	}
}

func runExample(t *testing.T, tools vmmTools, script string) {
	dir := t.TempDir()
	bin, err := filepath.Abs(filepath.Dir(tools.vmm))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(bin, filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	exampleRoot(t, dir)
	// The examples' sockets and files are in /tmp: here, in the folder that is the shell's. The console goes where the prelude looks.
	script = strings.ReplaceAll(script, "/tmp/", "")
	script = starts.ReplaceAllString(script, "$1 >console 2>log &")
	script = serves.ReplaceAllString(script, "$1\nwait_for $2 'test -S $2'")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "bash", "-c", examplePrelude+script+"\ncurl -sS --unix-socket fc.sock http://localhost/\n")
	c.Dir, c.WaitDelay = dir, 10*time.Second
	c.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := c.CombinedOutput()
	state := "Running"
	if !startLine.MatchString(script) {
		state = "Not started"
	}
	if err != nil || !strings.Contains(string(out), `"state":"`+state+`"`) {
		console, _ := os.ReadFile(filepath.Join(dir, "console"))
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Errorf("%v, want state %q\n%s\nscript:\n%s\nconsole:\n%s\nlog:\n%s", err, state, out, script, console, log)
	}
}

// exampleRoot makes rootfs.ext4, the root drive of the examples.
func exampleRoot(t *testing.T, dir string) {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"bin", "sbin", "dev", "proc", "sys"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"bin/busybox": busybox, "sbin/init": []byte(exampleInit)} {
		if err := os.WriteFile(filepath.Join(root, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", root, filepath.Join(dir, "rootfs.ext4"), "16M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
}
