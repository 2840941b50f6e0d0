package shim

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hooks"
)

// metricsFile has the VM's metrics kept, and gives their file.
func (w *world) metricsFile() string {
	w.Helper()
	dir := filepath.Join(filepath.Dir(w.settings), "metrics")
	text, err := os.ReadFile(w.settings)
	if err != nil {
		w.Fatal(err)
	}
	w.write(w.settings, string(text)+"metrics_dir=\""+dir+"\"\n")
	return filepath.Join(dir, "test@"+cid+".prom")
}

// The file of a VM's metrics is there while the VM is, for everybody to read, and tells whose it is.
func TestMetricsDir(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	path := w.metricsFile()
	w.run(nil)
	var text []byte
	for begin := time.Now(); !bytes.Contains(text, []byte("fc_vcpu")) || !bytes.Contains(text, []byte("fc_fs")); time.Sleep(time.Millisecond) {
		if text, _ = os.ReadFile(path); time.Since(begin) > 10*time.Second {
			t.Fatal("no metrics")
		}
	}
	for _, want := range []string{
		`fc_vcpu_exit_io_in_total{namespace="test",sandbox="` + cid + `"} 7`,
		`fc_block_read_count_total{namespace="test",sandbox="` + cid + `",drive="root"} 3`,
		`fc_fs_request_count_total{namespace="test",sandbox="` + cid + `",filesystem="shared"} 5`,
	} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", st, err)
	}
	var u undo
	if err := readRecord(w.bundle, undoName, &u); err != nil || u.Metrics != path {
		t.Errorf("what is to be undone: %+v, %v", u, err)
	}
	// It goes with the VM, which is before the container is deleted.
	if err := w.pod.vm.kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the VM's end: %v", err)
	}
	w.wait("", 137)
	w.delete("")
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := readRecord(w.bundle, undoName, &u); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note is left: %v", err)
	}
}

// A VM that does not start leaves no metrics; without the setting there is no pipe and no goroutine.
func TestMetricsOfFailedStart(t *testing.T) {
	w := newWorld(t, "die", "true")
	path := w.metricsFile()
	if err := w.create(nil); err == nil {
		t.Fatal("it started")
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if m, f, err := openMetrics(context.Background(), &Settings{}, "test", cid, 1); m != nil || f != nil || err != nil || m.wait() != nil {
		t.Errorf("%v, %v, %v", m, f, err)
	}
	if _, _, err := openMetrics(context.Background(), &Settings{MetricsDir: filepath.Join(w.settings, "x")}, "test", cid, 1); err == nil {
		t.Error("a folder below a file")
	}
}

// A VMM that will not die must not hold the shim for its metrics.
func TestMetricsWaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &vmMetrics{over: make(chan struct{})}
		if err := m.wait(); err == nil || !strings.Contains(err.Error(), "still being written") {
			t.Error(err)
		}
		close(m.over)
		if err := m.wait(); err != nil {
			t.Error(err)
		}
	})
}

// What a shim that was killed has left is removed by `delete`.
func TestUndoMetrics(t *testing.T) {
	bundle := t.TempDir()
	path := filepath.Join(t.TempDir(), "test@"+cid+".prom")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	u := undo{Metrics: path}
	if err := u.note(bundle); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := undoHost(context.Background(), bundle, cid); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	u = undo{Metrics: filepath.Join(path, "not", "there")}
	if err := u.carryOut(context.Background(), bundle, &hooks.Runner{}); err != nil {
		t.Error(err)
	}
}
