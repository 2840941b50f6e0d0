package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// TestPrometheus has the metrics of two VMs kept in a folder: each file says whose it is and what the container has done, and goes with its
// VM, also when the shim is killed.
func TestPrometheus(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	dir := filepath.Join(t.TempDir(), "metrics")
	config := c.Config(t, harness.Settings{"metrics_dir": dir})
	tasks := []*harness.Task{startIdle(t, c, config), startIdle(t, c, config)}
	path := func(task *harness.Task) string {
		return filepath.Join(dir, fmt.Sprintf("%s@%s.prom", harness.Namespace, task.ID()))
	}
	// value is a series' value in a task's file; -1 if it is not there.
	value := func(task *harness.Task, name, device string) float64 {
		text, err := os.ReadFile(path(task))
		if err != nil {
			return -1
		}
		line := fmt.Sprintf(`(?m)^%s\{namespace="%s",sandbox="%s"%s\} ([0-9.]+)$`, name, harness.Namespace, regexp.QuoteMeta(task.ID()), device)
		m := regexp.MustCompile(line).FindSubmatch(text)
		if m == nil {
			return -1
		}
		v, _ := strconv.ParseFloat(string(m[1]), 64)
		return v
	}
	const written = "fc_fs_tx_bytes_count_total"
	for _, task := range tasks {
		await(t, "metrics of "+task.ID(), func() bool { return value(task, "fc_updated_seconds", "") > 0 })
	}
	c.Must(t, "task", "exec", "--exec-id", c.ID(t), tasks[0].ID(), "sh", "-c", "head -c 3000000 /dev/zero >/file; sync")
	const shared = `,filesystem="[a-z]+"`
	for _, task := range tasks {
		before := value(task, "fc_updated_seconds", "")
		vmm := vmmClient(t, c, task.ID())
		_, err := vmm.Info(c.Context())
		if err == nil {
			err = vmm.FlushMetrics(c.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		await(t, "new metrics of "+task.ID(), func() bool { return value(task, "fc_updated_seconds", "") > before })
		files, err := c.FindProcess(task.ID(), harness.Files)
		if err == nil {
			err = unix.Kill(files, unix.SIGUSR1)
		}
		if err != nil {
			t.Fatal(err)
		}
		await(t, "metrics of the files of "+task.ID(), func() bool { return value(task, written, shared) > 0 })
	}
	if busy, idle := value(tasks[0], written, shared), value(tasks[1], written, shared); busy < 3e6 || idle < 0 || idle > 1e6 {
		t.Errorf("%.0f bytes by the container that wrote three million, %.0f by the other one", busy, idle)
	}
	for name, device := range map[string]string{
		"fc_block_read_bytes_total": `,drive="root"`, "fc_vcpu_exit_mmio_write_total": "", "fc_vsock_rx_bytes_count_total": "",
		"fc_vsock_tx_packets_count_total": "", "fc_interrupts_triggers_total": "", "fc_get_api_requests_instance_info_count_total": "",
	} {
		if v := value(tasks[0], name, device); v < 1 {
			t.Errorf("%s is %v", name, v)
		}
	}
	text, err := os.ReadFile(path(tasks[0]))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "fc_pmem") || strings.Contains(string(text), tasks[1].ID()) {
		t.Errorf("what is not this VM's:\n%s", text)
	}
	gone := func(task *harness.Task) bool {
		_, err := os.Stat(path(task))
		return errors.Is(err, fs.ErrNotExist)
	}
	kill(t, c, tasks[0], unix.SIGKILL)
	tasks[0].Await(t, long)
	c.Delete(t, tasks[0])
	if !gone(tasks[0]) {
		t.Error("the file is still there after its container's deletion")
	}
	c.KillProcess(t, tasks[1].ID(), harness.Shim)
	await(t, "the file of a killed shim's VM to be removed", func() bool { return gone(tasks[1]) })
	<-tasks[1].Exit
	clearUp(t, c, tasks[1].ID())
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
