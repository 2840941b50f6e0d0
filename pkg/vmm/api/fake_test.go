package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/mmds"
)

func TestMain(m *testing.M) {
	log.SetLevel("fatal")
	os.Exit(m.Run())
}

// fakeMachine counts what it is asked to do. Its state is its own affair, as a real machine's is: guests end by themselves.
type fakeMachine struct {
	mu                    sync.Mutex
	state                 config.State
	pauses, resumes, keys int
	drives                []config.DriveUpdate
	interfaces            []config.NetworkInterfaceUpdate
	fakeBalloon
	err error
}

func (m *fakeMachine) State() config.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *fakeMachine) set(s config.State, count *int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	*count++
	if m.err == nil {
		m.state = s
	}
	return m.err
}

func (m *fakeMachine) Pause(context.Context) error  { return m.set(config.Paused, &m.pauses) }
func (m *fakeMachine) Resume(context.Context) error { return m.set(config.Running, &m.resumes) }

func (m *fakeMachine) SendCtrlAltDel(context.Context) error { return m.set(m.State(), &m.keys) }

func (m *fakeMachine) UpdateDrive(_ context.Context, u config.DriveUpdate) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drives = append(m.drives, u)
	return m.err
}

func (m *fakeMachine) UpdateNetworkInterface(_ context.Context, u config.NetworkInterfaceUpdate) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.interfaces = append(m.interfaces, u)
	return m.err
}

// bench is a server with a fake machine, in a folder with the files that requests may name.
type bench struct {
	*Server
	dir     string
	machine *fakeMachine
	bootErr error
	booted  []config.VM
	loggers *[]config.Logger
}

func newBench(t testing.TB) *bench {
	dir := t.TempDir()
	fillFolder(t, dir)
	var loggers []config.Logger
	b := newBenchWith(dir, Options{
		Logger:  func(c config.Logger) error { loggers = append(loggers, c); return nil },
		Metrics: metrics.NewRecorder("vm-1"),
	})
	b.loggers = &loggers
	t.Cleanup(func() { b.metrics.Close() })
	return b
}

func fillFolder(t testing.TB, dir string) {
	for _, name := range []string{"vmlinux", "initrd", "disk", "data"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "shared"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// testMetadata bounds the metadata in tests, in bytes.
const testMetadata = 1000

// newBenchIn makes a server whose log and metrics cannot be configured: it opens no file for writing.
func newBenchIn(dir string) *bench {
	return newBenchWith(dir, Options{})
}

func newBenchWith(dir string, o Options) *bench {
	b := &bench{dir: dir, machine: &fakeMachine{state: config.Running}}
	o.Metadata = mmds.NewStore(testMetadata)
	o.ID, o.Version, o.Boot = "vm-1", "1.2.3", func(_ context.Context, vm config.VM) (Machine, error) {
		if b.bootErr != nil {
			return nil, b.bootErr
		}
		b.booted = append(b.booted, vm)
		return b.machine, nil
	}
	b.Server = NewServer(o)
	return b
}

// do sends a request, in which "$D" stands for the folder, and gives the status and the body.
func (b *bench) do(method, path, body string) (int, string) {
	r := httptest.NewRequest(method, path, strings.NewReader(strings.ReplaceAll(body, "$D", b.dir)))
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// must sends a request that has to succeed.
func (b *bench) must(t testing.TB, method, path, body string) string {
	t.Helper()
	status, answer := b.do(method, path, body)
	if status != http.StatusOK && status != http.StatusNoContent {
		t.Fatalf("%s %s %s: %d %s", method, path, body, status, answer)
	}
	return answer
}

func (b *bench) start(t testing.TB) {
	t.Helper()
	b.must(t, "PUT", "/boot-source", `{"kernel_image_path": "$D/vmlinux"}`)
	b.must(t, "PUT", "/actions", `{"action_type": "InstanceStart"}`)
}

// faultOf is the message of a refusal's body.
func faultOf(t testing.TB, body string) string {
	t.Helper()
	var f map[string]string
	if err := json.Unmarshal([]byte(body), &f); err != nil || len(f) != 1 || f["fault_message"] == "" {
		t.Fatalf("%q is no refusal: %v", body, err)
	}
	return f["fault_message"]
}

var errFake = errors.New("out of fake memory")
