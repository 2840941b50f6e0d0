package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

// share is where the host's folder is mounted.
const share = "/mnt"

func fileWork(t task.Task) (func(int) (time.Duration, error), error) {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return nil, fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount(task.Tag, share, "virtiofs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount the share: %w", err)
	}
	work := map[string]func(task.Task, int) (time.Duration, error){
		task.FileRead: readFile, task.FileWrite: writeFile, task.FileCreate: createFiles, task.FileStat: statFiles,
		task.FileUnlink: unlinkFiles, task.WalkCold: walkCold, task.WalkWarm: walkWarm,
	}[t.Work]
	return func(n int) (time.Duration, error) { return work(t, n) }, nil
}

// forget empties the guest's caches. Forgotten files are told to the host in the background, which is let come to its end.
func forget() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond)
	return nil
}

// readFile reads a file that the guest has nothing of.
func readFile(t task.Task, _ int) (time.Duration, error) {
	if err := forget(); err != nil {
		return 0, err
	}
	fd, err := unix.Open(filepath.Join(share, task.DataFile), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if t.Random {
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil {
			return 0, err
		}
	}
	buf := make([]byte, t.Block)
	began := time.Now()
	for i := range t.Operations() {
		off := t.Offset(i)
		if err := whole(unix.Pread(fd, buf, int64(off))).of(buf, off); err != nil {
			return 0, err
		}
		if err := task.CheckMarks(buf, off/task.Page, 0); err != nil {
			return 0, err
		}
	}
	took := time.Since(began)
	return took, task.Check(buf, t.Offset(t.Operations()-1)/task.Page, 0)
}

// writeFile writes a file anew, until the host has all of it.
func writeFile(t task.Task, n int) (time.Duration, error) {
	buf := make([]byte, t.Block)
	task.Fill(buf)
	began := time.Now()
	fd, err := unix.Open(filepath.Join(share, task.OutFile), unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return 0, err
	}
	for i := range t.Operations() {
		off := t.Offset(i)
		task.Mark(buf, off/task.Page, n)
		if err := whole(unix.Pwrite(fd, buf, int64(off))).of(buf, off); err != nil {
			return 0, err
		}
	}
	if err := unix.Fsync(fd); err != nil {
		return 0, err
	}
	if err := unix.Close(fd); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

// files are the names of a round's small files.
func files(t task.Task, n int) (dir string, names []string) {
	dir = filepath.Join(share, task.FilesDir+strconv.Itoa(n))
	for i := range t.Count {
		names = append(names, filepath.Join(dir, strconv.Itoa(i)))
	}
	return dir, names
}

func createFiles(t task.Task, n int) (time.Duration, error) {
	dir, names := files(t, n)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	data := make([]byte, task.SmallFile)
	began := time.Now()
	for _, name := range names {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return 0, err
		}
		if err := whole(unix.Write(fd, data)).of(data, 0); err != nil {
			return 0, fmt.Errorf("write %s: %w", name, err)
		}
		if err := unix.Close(fd); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

func statFiles(t task.Task, n int) (time.Duration, error) {
	_, names := files(t, n)
	if err := forget(); err != nil {
		return 0, err
	}
	began := time.Now()
	for _, name := range names {
		if err := lstat(name); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// lstat wants a small file.
func lstat(name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return fmt.Errorf("lstat %s: %w", name, err)
	}
	if st.Size != task.SmallFile {
		return fmt.Errorf("%s has %d bytes, want %d", name, st.Size, task.SmallFile)
	}
	return nil
}

func unlinkFiles(t task.Task, n int) (time.Duration, error) {
	_, names := files(t, n)
	began := time.Now()
	for _, name := range names {
		if err := unix.Unlink(name); err != nil {
			return 0, fmt.Errorf("unlink %s: %w", name, err)
		}
	}
	return time.Since(began), nil
}

func walkCold(t task.Task, _ int) (time.Duration, error) {
	if err := forget(); err != nil {
		return 0, err
	}
	return walk(t)
}

// walkWarm's first walk is cold: entries that are warm for long are no longer valid.
func walkWarm(t task.Task, n int) (time.Duration, error) {
	if _, err := walkCold(t, n); err != nil {
		return 0, err
	}
	return walk(t)
}

// walk does what `git status` does to the file system: it lists each folder, and asks for the state of each file.
func walk(t task.Task) (time.Duration, error) {
	began := time.Now()
	folders, err := list(filepath.Join(share, task.TreeDir))
	if err != nil {
		return 0, err
	}
	seen := 0
	for _, folder := range folders {
		names, err := list(folder)
		if err != nil {
			return 0, err
		}
		for _, name := range names {
			if err := lstat(name); err != nil {
				return 0, err
			}
		}
		seen += len(names)
	}
	took := time.Since(began)
	if seen != t.Count {
		return 0, fmt.Errorf("%d files in %d folders, want %d files", seen, len(folders), t.Count)
	}
	return took, nil
}

func list(folder string) (paths []string, err error) {
	fd, err := unix.Open(folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", folder, err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", folder, err)
		}
		if n == 0 {
			return paths, nil
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			paths = append(paths, folder+"/"+name)
		}
	}
}
