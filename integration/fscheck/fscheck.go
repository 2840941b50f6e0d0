// Package fscheck holds checks of what POSIX and Linux promise of a file system, beyond what go-fuse's posixtest looks at. They
// run inside of a container, against its root filesystem or a volume, and know nothing of either: what they claim holds for any
// local file system of Linux. They need root with the capabilities that containers have by default.
//
// It must never reach outside of the folder that a check is given.
package fscheck

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Check is one of them. Run gets an empty folder of its own, open to everybody.
type Check struct {
	Name string
	Run  func(t *testing.T, dir string)
}

// All are the checks, in the order in which they should run.
func All() []Check {
	return []Check{
		{"HardLinks", hardLinks},
		{"Symlinks", symlinks},
		{"RenameVariants", renameVariants},
		{"Lengths", lengths},
		{"BigDirectory", bigDirectory},
		{"Unlinked", unlinked},
		{"Sparse", sparse},
		{"Tmpfile", tmpfile},
		{"Append", appends},
		{"CopyFileRange", copyFileRange},
		{"MmapShared", mmapShared},
		{"TextBusy", textBusy},
		{"Owners", owners},
		{"PrivilegeBits", privilegeBits},
		{"StickyFolder", stickyFolder},
		{"SetgidFolder", setgidFolder},
		{"Times", times},
		{"Statx", statx},
		{"UserXattrs", userXattrs},
		{"FileCapabilities", fileCapabilities},
		{"ACLs", acls},
		{"Fifo", fifo},
		{"Devices", devices},
		{"Sockets", sockets},
		{"Flock", flock},
		{"RecordLocks", recordLocks},
		{"Inotify", inotify},
		{"SyncKinds", syncKinds},
	}
}

// EnvChild names what a child process of a check is to do.
const EnvChild = "FSCHECK_CHILD"

// Watch is a task for a child by itself: see childWatch.
const Watch = "watch"

// Child does a child's work and ends the process, if this is one. A test's program calls it first thing.
func Child() {
	task := os.Getenv(EnvChild)
	if task == "" {
		return
	}
	do, ok := map[string]func(string) error{"map": childMap, "lock": childLock, Watch: childWatch}[task]
	err := fmt.Errorf("no such task: %s", task)
	if ok {
		err = do(os.Args[1])
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child runs a process of its own.
func child(t *testing.T, task, arg string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", arg)
	cmd.Env = append(os.Environ(), EnvChild+"="+task)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the process that was to %s: %v: %s", task, err, out)
	}
}

// as runs do with another user's rights on files, and none of root's.
func as(t *testing.T, uid, gid int, do func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_, _ = unix.SetfsgidRetGid(gid)
		_, _ = unix.SetfsuidRetUid(uid) // takes the capabilities that concern files, too
		done <- do()
	}()
	return <-done
}

// must ends the check with err, if there is one.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wants compares an error with the errno that it shall hold.
func wants(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func lstat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", filepath.Base(path), err)
	}
	return st
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

// holds compares a file's content.
func holds(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %.60q (%v), want %.60q", filepath.Base(path), got, err, want)
	}
}

// open opens or makes a file until the check's end.
func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatalf("open %s: %v", filepath.Base(path), err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
