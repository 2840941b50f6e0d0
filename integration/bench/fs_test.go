package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

// envFiles is how many small files are created, looked at and removed.
const envFiles = "FC_BENCH_FILES"

const (
	defaultFiles = 10000
	treeFolders  = 100
	treeFiles    = 2000 // in all of them together
)

// BenchmarkFS is a folder in memory that a guest has over virtio-fs: fc-vmm's own server of files, in a process of its own
// and inside the VMM, against QEMU with Debian's virtiofsd.
func BenchmarkFS(b *testing.B) {
	mayRunVMs(b)
	peers := []vmm{fcVMM(), fcInside()}
	if _, err := os.Stat(virtiofsd); err == nil {
		intoMemory(b, virtiofsd)
		peers = append(peers, qemu(b, "virtiofsd"))
	} else {
		b.Logf("no virtiofsd: %v", err)
	}
	files, err := smallFiles()
	if err != nil {
		b.Fatal(err)
	}
	const size, block, count = 64 * mib, 128 << 10, 2000
	compare(b, peers, []operation{
		{"read-seq", task.Task{Work: task.FileRead, Bytes: size, Block: block}, mibPerSecond},
		{"write-seq", task.Task{Work: task.FileWrite, Bytes: size, Block: block}, mibPerSecond},
		{"read-4k", task.Task{Work: task.FileRead, Bytes: size, Block: task.Page, Random: true, Count: count}, opsPerSecond},
		{"create", task.Task{Work: task.FileCreate, Count: files}, opsPerSecond},
		{"stat", task.Task{Work: task.FileStat, Count: files}, opsPerSecond},
		{"unlink", task.Task{Work: task.FileUnlink, Count: files}, opsPerSecond},
		{"walk-cold", task.Task{Work: task.WalkCold, Count: treeFiles}, opsPerSecond},
		{"walk-warm", task.Task{Work: task.WalkWarm, Count: treeFiles}, opsPerSecond},
	}, func(b *testing.B, _ vmm, t task.Task) (machine, func()) {
		share := makeShare(b, t)
		return machine{memMiB: 512, share: share}, func() { checkShare(b, share, t) }
	})
}

func smallFiles() (int, error) {
	s := os.Getenv(envFiles)
	if s == "" {
		return defaultFiles, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%s is %q: want a number of files, 1 or more", envFiles, s)
	}
	return n, nil
}

// makeShare makes a folder with what a task needs.
func makeShare(b *testing.B, t task.Task) string {
	b.Helper()
	dir := b.TempDir()
	var err error
	switch t.Work {
	case task.FileRead:
		dataFile(b, filepath.Join(dir, task.DataFile), t.Bytes)
	case task.FileStat, task.FileUnlink:
		for n := 0; err == nil && n < t.Rounds; n++ {
			err = makeFiles(filepath.Join(dir, task.FilesDir+strconv.Itoa(n)), t.Count)
		}
	case task.WalkCold, task.WalkWarm:
		for n := 0; err == nil && n < treeFolders; n++ {
			err = makeFiles(filepath.Join(dir, task.TreeDir, strconv.Itoa(n)), t.Count/treeFolders)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	return dir
}

func makeFiles(dir string, n int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data := make([]byte, task.SmallFile)
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// checkShare looks at what a task should have changed.
func checkShare(b *testing.B, dir string, t task.Task) {
	b.Helper()
	switch t.Work {
	case task.FileWrite:
		checkWritten(b, filepath.Join(dir, task.OutFile), t)
	case task.FileCreate, task.FileUnlink:
		want := t.Count
		if t.Work == task.FileUnlink {
			want = 0
		}
		for n := range t.Rounds {
			files, err := os.ReadDir(filepath.Join(dir, task.FilesDir+strconv.Itoa(n)))
			if err != nil || len(files) != want {
				b.Fatalf("after round %d of %s: %d files, want %d (%v)", n, t.Work, len(files), want, err)
			}
			if want == 0 {
				continue
			}
			if fi, err := files[want/2].Info(); err != nil || fi.Size() != task.SmallFile {
				b.Fatalf("after round %d of %s: a file is %v (%v), want %d bytes", n, t.Work, fi, err, task.SmallFile)
			}
		}
	}
}
