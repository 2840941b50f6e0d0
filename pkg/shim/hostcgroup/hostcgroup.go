// Package hostcgroup puts the host's processes of a container, its VMM above all, into the cgroup that the container's spec
// names, with those of the spec's limits that mean something for a VM. It serves cgroup v2 and v1, and does without a library,
// of which each brings D-Bus and BPF along.
//
// It must never remove a cgroup that it has not made, nor change a parent but for what its children may have (cgroup v2's
// subtree_control, an empty cpuset of v1).
package hostcgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Limits are those of a cgroup; a zero value leaves what is there.
type Limits struct {
	MemoryBytes int64
	// CPUQuotaUS is the CPU time in microseconds for each CPUPeriodUS; a negative one is no limit.
	CPUQuotaUS  int64
	CPUPeriodUS uint64
	CPUShares   uint64 // cgroup v1's measure, 2 to 262144
	CPUs, Mems  string // as in cpuset(7): "0-3,7"
}

// Hierarchy is a mounted tree of cgroups.
type Hierarchy struct {
	Dir string
	// Controllers are those of a v1 hierarchy, as /proc/self/mountinfo names them; nil means cgroup v2.
	Controllers []string
}

func (h Hierarchy) has(controller string) bool {
	return h.Controllers == nil || slices.Contains(h.Controllers, controller)
}

// Path is where a spec's linux.cgroupsPath is below a hierarchy's root: /a/b or a/b as it stands, and slice:prefix:name, which
// stands for systemd's, as runc would ask systemd for: system.slice:nerdctl:x is system.slice/nerdctl-x.scope.
func Path(cgroupsPath string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("linux.cgroupsPath %q: %s: %w", cgroupsPath, why, errdefs.ErrInvalidArgument)
	}
	path := cgroupsPath
	if parts := strings.Split(cgroupsPath, ":"); len(parts) == 3 && !strings.Contains(parts[1]+parts[2], "/") {
		slice, ok := slicePath(parts[0])
		if !ok {
			return bad("the slice's name must end in .slice, with single dashes between its parts")
		}
		unit := parts[2]
		switch {
		case unit == "":
			return bad("no name after the second colon")
		case strings.HasSuffix(unit, ".slice"):
		case parts[1] == "":
			unit += ".scope"
		default:
			unit = parts[1] + "-" + unit + ".scope"
		}
		path = filepath.Join(slice, unit)
	}
	path = strings.Trim(path, "/")
	switch {
	case path == "" || strings.ContainsAny(path, "\x00\n"):
		return bad("a path below the root is needed")
	case !filepath.IsLocal(path) || filepath.Clean(path) != path:
		return bad("a path without \".\", \"..\" and empty parts is needed")
	}
	return path, nil
}

// slicePath is the folder of a slice, as systemd.slice(5) says: a-b.slice is a.slice/a-b.slice. No name is system.slice.
func slicePath(slice string) (string, bool) {
	if slice == "" {
		return "system.slice", true
	}
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || strings.Contains(name, "/") {
		return "", false
	}
	if name == "-" {
		return "", true
	}
	path, prefix := "", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", false
		}
		prefix += part
		path = filepath.Join(path, prefix+".slice")
		prefix += "-"
	}
	return path, true
}

// Cgroup is a cgroup, which with v1 is a folder in each hierarchy.
type Cgroup struct {
	roots   []Hierarchy
	path    string
	folders []Hierarchy
	missing []string
}

// New takes stock of the cgroup at path, of Path's form, below the hierarchies.
func New(hierarchies []Hierarchy, path string) (*Cgroup, error) {
	if len(hierarchies) == 0 {
		return nil, fmt.Errorf("cgroup %s: no hierarchy of cgroups is mounted on this host: %w", path, errdefs.ErrFailedPrecondition)
	}
	c := &Cgroup{roots: hierarchies, path: path}
	for _, h := range hierarchies {
		dir := filepath.Join(h.Dir, path)
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			c.missing = append(c.missing, dir)
		} else if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		c.folders = append(c.folders, Hierarchy{dir, h.Controllers})
	}
	return c, nil
}

// Missing lists the folders that were not there when New looked. Make makes them, and Remove, then or in another process, removes
// them; parents that Make makes stay, as with runc.
func (c *Cgroup) Missing() []string { return c.missing }

// Make makes the cgroup, or joins it if it is there, and sets its limits. After an error the caller removes what Missing says.
func (c *Cgroup) Make(l Limits) error {
	for _, h := range c.roots {
		if err := makeFolder(h, c.path); err != nil {
			return fmt.Errorf("make the cgroup %s: %w", filepath.Join(h.Dir, c.path), err)
		}
	}
	return c.Set(l)
}

// makeFolder makes a cgroup with its parents, and sees to it that limits can be set.
func makeFolder(h Hierarchy, path string) error {
	dir := h.Dir
	for name := range strings.SplitSeq(path, "/") {
		if h.Controllers == nil {
			delegate(dir)
		}
		parent := dir
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if slices.Contains(h.Controllers, "cpuset") {
			if err := inheritCpuset(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegate lets the children of a v2 cgroup have limits. What it cannot enable, Set will miss if it is needed.
func delegate(dir string) {
	const name = "cgroup.subtree_control"
	b, _ := os.ReadFile(filepath.Join(dir, name))
	enabled := strings.Fields(string(b))
	for _, c := range []string{"cpuset", "cpu", "io", "memory", "pids"} {
		if !slices.Contains(enabled, c) {
			_ = put(dir, name, "+"+c)
		}
	}
}

// inheritCpuset gives a v1 cpuset the CPUs and memory nodes of its parent if it has none: no process may join before.
func inheritCpuset(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if len(strings.TrimSpace(string(own))) > 0 {
			continue
		}
		theirs, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := put(dir, name, strings.TrimSpace(string(theirs))); err != nil {
			return err
		}
	}
	return nil
}

// Set changes limits. The first that cannot be set is the error, which names its file.
func (c *Cgroup) Set(l Limits) error {
	for _, f := range c.folders {
		for _, v := range l.values(f) {
			if err := put(f.Dir, v[0], v[1]); err != nil {
				return fmt.Errorf("set a limit on the host: %w: %w", err, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

// values are the files of a folder to be written and their contents, in order.
func (l Limits) values(h Hierarchy) (v [][2]string) {
	add := func(controller, v1, v2, value string) {
		switch {
		case value == "" || !h.has(controller):
		case h.Controllers == nil:
			v = append(v, [2]string{v2, value})
		default:
			v = append(v, [2]string{v1, value})
		}
	}
	add("cpuset", "cpuset.cpus", "cpuset.cpus", l.CPUs)
	add("cpuset", "cpuset.mems", "cpuset.mems", l.Mems)
	if l.MemoryBytes > 0 {
		add("memory", "memory.limit_in_bytes", "memory.max", strconv.FormatInt(l.MemoryBytes, 10))
	}
	if l.CPUShares > 0 {
		add("cpu", "cpu.shares", "cpu.weight", l.weight(h.Controllers == nil))
	}
	period := ""
	if l.CPUPeriodUS > 0 {
		period = strconv.FormatUint(l.CPUPeriodUS, 10)
	}
	if h.Controllers != nil {
		add("cpu", "cpu.cfs_period_us", "", period)
		if l.CPUQuotaUS != 0 {
			add("cpu", "cpu.cfs_quota_us", "", strconv.FormatInt(max(l.CPUQuotaUS, -1), 10))
		}
	} else if l.CPUQuotaUS != 0 {
		quota := "max"
		if l.CPUQuotaUS > 0 {
			quota = strconv.FormatInt(l.CPUQuotaUS, 10)
		}
		add("cpu", "", "cpu.max", strings.TrimSpace(quota+" "+period))
	}
	return v
}

// weight turns shares into v2's weight, 1 to 10000, as runc and the guest do, by a curve through the least, the usual
// and the greatest value of both (github.com/opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value).
func (l Limits) weight(unified bool) string {
	const least, greatest = 2, 262144
	shares := min(max(l.CPUShares, least), greatest)
	if !unified {
		return strconv.FormatUint(shares, 10)
	}
	if shares == least {
		return "1"
	}
	log := math.Log2(float64(shares))
	weight := math.Ceil(math.Pow(10, (log*log+125*log)/612-7.0/34))
	return strconv.FormatUint(min(uint64(weight), 10000), 10)
}

// put writes a file that the kernel has made, as one write.
func put(dir, name, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Open opens a v2 cgroup for a process to be started in it (clone3(2), CLONE_INTO_CGROUP); nil with v1, where Add comes after.
func (c *Cgroup) Open() (*os.File, error) {
	if c.folders[0].Controllers != nil {
		return nil, nil
	}
	return os.OpenFile(c.folders[0].Dir, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// Add moves a process into the cgroup.
func (c *Cgroup) Add(pid int) error {
	for _, f := range c.folders {
		if err := put(f.Dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("put process %d into a cgroup: %w", pid, err)
		}
	}
	return nil
}

// removeTimeout is how long the last processes of a cgroup may take to leave it.
const removeTimeout = 2 * time.Second

// Remove removes cgroups whose processes have ended. One that has gone is no error.
func Remove(folders []string) error {
	var errs []error
	for _, dir := range folders {
		if err := remove(dir); err != nil {
			errs = append(errs, fmt.Errorf("remove the cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// remove goes by rmdir(2) alone: a cgroup's files cannot be removed, and need not. The kernel reports a process as ended a
// moment before it takes it out of its cgroup, and KVM has a thread in the one of its VM until it has destroyed that.
func remove(dir string) error {
	deadline := time.Now().Add(removeTimeout)
	var watch *os.File // once it is known to be needed
	for pause := time.Millisecond; ; pause *= 2 {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(deadline):
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		if watch == nil {
			if watch, err = os.Open(filepath.Join(dir, "cgroup.events")); err == nil {
				defer watch.Close()
			}
		}
		if watch == nil || !awaitEmpty(watch, deadline) {
			time.Sleep(pause) // v1 has no such file, and an empty cgroup may be busy for a moment
		}
	}
}

// awaitEmpty waits, until a deadline, for the end of what is in a cgroup (v2), by its file of events. It is false if there is nothing to wait for.
func awaitEmpty(events *os.File, deadline time.Time) bool {
	text := make([]byte, 256)
	n, _ := events.ReadAt(text, 0) // what changes from here on ends the poll
	if !bytes.Contains(text[:n], []byte("populated 1")) {
		return false
	}
	left := max(time.Until(deadline).Milliseconds(), 0) + 1 // rounded up
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}, int(left))
	return err == nil
}
