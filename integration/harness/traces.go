package harness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

type process struct {
	pid int
	// name is the program's file name as it was called; of a process that is dead but unreaped, the first 15 bytes of that.
	name string
	args []string
}

// processes lists the live and the dead but unreaped processes that belong to this containerd's containers: those of a shim, of a
// VMM and of runc, and all that name the harness's folder.
func (c *Containerd) processes() []process {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var ps []process
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() || c.cmd != nil && pid == c.Pid() {
			continue
		}
		// A process that has just ended gives errors here, and is none.
		comm, err := os.ReadFile(filepath.Join("/proc", d.Name(), "comm"))
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil {
			continue
		}
		p := process{pid: pid, name: strings.TrimSpace(string(comm)), args: strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")}
		if p.args[0] != "" {
			// comm is the name of the first thread, which may have taken another.
			p.name = filepath.Base(p.args[0])
		}
		if p.belongs(c.dir) {
			ps = append(ps, p)
		}
	}
	return ps
}

func (p process) belongs(dir string) bool {
	if slices.ContainsFunc(p.args, func(arg string) bool { return strings.Contains(arg, dir+"/") }) {
		return true
	}
	return strings.HasPrefix(p.name, "containerd-shim") || p.name == "fc-vmm" || p.name == "runc" || strings.HasPrefix(p.name, "runc:")
}

func (c *Containerd) processLines() ([]string, error) {
	var lines []string
	for _, p := range c.processes() {
		lines = append(lines, fmt.Sprintf("process %d (%s) %s", p.pid, p.name, strings.Join(p.args, " ")))
	}
	return lines, nil
}

// mountPoints lists the mount points that process pid sees, in the order of mounting.
func mountPoints(pid string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "mountinfo"))
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			points = append(points, f[4])
		}
	}
	return points, nil
}

// mountLines lists mounts as containerd sees them, which may have a mount namespace of its own, and as this process does.
func (c *Containerd) mountLines() ([]string, error) {
	points, err := mountPoints("self")
	if err != nil {
		return nil, err
	}
	if c.client != nil {
		more, err := mountPoints(strconv.Itoa(c.Pid()))
		if err != nil {
			return nil, err
		}
		points = append(points, more...)
	}
	var lines []string
	stacked := map[string]int{}
	for _, p := range points {
		stacked[p]++
		lines = append(lines, fmt.Sprintf("mount %s (layer %d)", p, stacked[p]))
	}
	return lines, nil
}

func (c *Containerd) socketLines() ([]string, error) {
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 8 && strings.ContainsAny(f[7], "/@") {
			lines = append(lines, "socket "+f[7])
		}
	}
	return lines, nil
}

// cgroupLines leaves out what systemd makes for others, and the cgroup of the namespace, which runc leaves for the next container.
func (c *Containerd) cgroupLines() ([]string, error) {
	const root = "/sys/fs/cgroup"
	var lines []string
	err := walk(root, 8, func(path string, d fs.DirEntry) bool {
		switch filepath.Ext(path) {
		case ".slice", ".scope", ".service", ".mount":
			return false
		}
		if d.IsDir() && path != filepath.Join(root, Namespace) {
			lines = append(lines, "cgroup "+path)
		}
		return d.IsDir()
	})
	return lines, err
}

func netnsLines() ([]string, error) {
	var lines []string
	err := walk("/run/netns", 1, func(path string, _ fs.DirEntry) bool {
		lines = append(lines, "netns "+path)
		return false
	})
	return lines, err
}

// fileLines lists files where containerd, its shims and its clients make them.
func (c *Containerd) fileLines() ([]string, error) {
	var lines []string
	for _, place := range []struct {
		dir   string
		depth int
	}{
		{c.path("state"), 4}, {c.path("root", "io.containerd.runtime.v2.task"), 3}, {c.tmp(), 2},
		{"/run", 2}, {"/run/containerd", 4}, {"/dev/shm", 2},
	} {
		err := walk(place.dir, place.depth, func(path string, d fs.DirEntry) bool {
			// The folder of a namespace stays, and a rootfs is a container's own.
			if d.Name() == Namespace {
				return true
			}
			// runc's shim leaves its sockets behind when it is killed.
			if !c.FC() && path == "/run/containerd/s" {
				return false
			}
			lines = append(lines, "file "+path)
			return d.Name() != "rootfs" && d.Name() != "shared"
		})
		if err != nil {
			return nil, err
		}
	}
	return lines, nil
}

func loopLines() ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			lines = append(lines, fmt.Sprintf("loop device %s on %s", filepath.Base(filepath.Dir(filepath.Dir(f))), strings.TrimSpace(string(b))))
		}
	}
	return lines, nil
}

func linkLines() ([]string, error) {
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, l := range links {
		lines = append(lines, "network device "+l.Name())
	}
	return lines, nil
}

func (c *Containerd) tasks(ctx context.Context) ([]string, error) {
	resp, err := c.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	var lines []string
	for _, t := range resp.Tasks {
		lines = append(lines, fmt.Sprintf("task %s", t.ID))
	}
	return lines, nil
}

func (c *Containerd) activeSnapshots(ctx context.Context) ([]string, error) {
	var lines []string
	err := c.client.SnapshotService("").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		lines = append(lines, fmt.Sprintf("snapshot %s (%s)", info.Name, info.Kind))
		return nil
	})
	return lines, err
}

// walk calls visit for all below dir, at most depth levels down; it descends where visit returns true. What goes away under the
// walk, and a dir that does not exist, are no errors.
func walk(dir string, depth int, visit func(path string, d fs.DirEntry) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, d := range entries {
		path := filepath.Join(dir, d.Name())
		if visit(path, d) && d.IsDir() && depth > 1 {
			if err := walk(path, depth-1, visit); err != nil {
				return err
			}
		}
	}
	return nil
}
