package harness

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Usage is what a process takes of the machine. Sizes are in bytes.
type Usage struct {
	// Private is what no other process shares, without a guest's RAM: what the process costs.
	Private int64
	// Shared is what others have mapped, too: programs and libraries.
	Shared int64
	// GuestRAM is the part of a guest's RAM that is in use.
	GuestRAM int64
	// Files and Threads are counts.
	Files, Threads int
}

func (u Usage) String() string {
	return fmt.Sprintf("%d KiB private, %d KiB of guest RAM, %d files, %d threads", u.Private>>10, u.GuestRAM>>10, u.Files, u.Threads)
}

// Measure looks at process pid.
func Measure(t testing.TB, pid int) Usage {
	t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	maps, err := os.ReadFile(filepath.Join(proc, "smaps"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := parseSmaps(maps)
	if err != nil {
		t.Fatalf("%s/smaps: %v", proc, err)
	}
	if u.Files, err = count(filepath.Join(proc, "fd")); err != nil {
		t.Fatal(err)
	}
	if u.Threads, err = count(filepath.Join(proc, "task")); err != nil {
		t.Fatal(err)
	}
	return u
}

// parseSmaps adds up /proc/PID/smaps (proc(5)): a line for each mapping, whose name comes last, and below it its sizes in KiB.
func parseSmaps(smaps []byte) (u Usage, err error) {
	ram := false
	lines := bufio.NewScanner(bytes.NewReader(smaps))
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ":")
		switch {
		case !ok || strings.Contains(key, " "): // "start-end perms offset dev:ino name"
			ram = strings.Contains(lines.Text(), "guest-ram")
		case strings.HasPrefix(key, "Private_") || strings.HasPrefix(key, "Shared_"):
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			if err != nil {
				return u, fmt.Errorf("%s: %w", key, err)
			}
			*u.sum(ram, key) += kib << 10
		}
	}
	return u, lines.Err()
}

// sum is what a line of smaps adds to.
func (u *Usage) sum(ram bool, key string) *int64 {
	switch {
	case ram:
		return &u.GuestRAM
	case strings.HasPrefix(key, "Shared_"):
		return &u.Shared
	}
	return &u.Private
}

func count(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	return len(entries), err
}

// Holder is the process that stands for a container on the host.
const Holder Role = "holder"

// FindHolder returns the pid of container id's holder.
func (c *Containerd) FindHolder(id string) (int, error) {
	for _, p := range c.processes() {
		if len(p.args) > 1 && p.name == "fc-vmm" && p.args[1] == "hold" && slices.Contains(p.args, id) {
			return p.pid, nil
		}
	}
	return 0, fmt.Errorf("%s of %s: %w", Holder, id, ErrNoProcess)
}

// Find is FindProcess for each role, the holder's too.
func (c *Containerd) Find(id string, role Role) (int, error) {
	if role == Holder {
		return c.FindHolder(id)
	}
	return c.FindProcess(id, role)
}

// Usages measures the processes of container id.
func (c *Containerd) Usages(t testing.TB, id string) map[Role]Usage {
	t.Helper()
	roles := []Role{Shim}
	if c.FC() {
		roles = append(roles, VMM, Files, Holder)
	}
	usages := map[Role]Usage{}
	for _, role := range roles {
		pid, err := c.Find(id, role)
		if err != nil {
			t.Fatal(err)
		}
		usages[role] = Measure(t, pid)
	}
	return usages
}
