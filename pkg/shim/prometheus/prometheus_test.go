package prometheus

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Counters add up, gauges are as they are, devices have labels, sums and what is not known are left out.
func TestText(t *testing.T) {
	tab := newTable(`k8s.io`, "pod-1")
	for _, line := range []string{
		`{"utc_timestamp_ms":1739000000123,"id":"x","properties":{"a":"b"},"block_root":{"read_count":3,"read_agg":{"min_us":5,"max_us":9,"sum_us":14}},
		  "block":{"read_count":3},"vcpu":{"exit_io_in":1,"none":4},"pmem":{"event_fails":0},"latencies_us":{"pause_vm":7}}`,
		`{"utc_timestamp_ms":1739000060123,"block_root":{"read_count":4,"read_agg":{"min_us":2,"max_us":9,"sum_us":6}},"block_b":{"read_count":0},
		  "block":{"read_count":4},"vcpu":{"exit_io_in":0},"latencies_us":{"pause_vm":8},"net_eth0":{"rx_bytes_count":100},"fs_s":{"request_count":2},
		  "other":{"x":1},"uart":{"write_count":-1,"read_count":1.5,"error_count":"1","flush_count":18446744073709551616}}`,
	} {
		if err := tab.add([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	const want = `# HELP fc_block_read_agg_max_us Firecracker's metric block.read_agg.max_us.
# TYPE fc_block_read_agg_max_us gauge
fc_block_read_agg_max_us{namespace="k8s.io",sandbox="pod-1",drive="root"} 9
# HELP fc_block_read_agg_min_us Firecracker's metric block.read_agg.min_us.
# TYPE fc_block_read_agg_min_us gauge
fc_block_read_agg_min_us{namespace="k8s.io",sandbox="pod-1",drive="root"} 2
# HELP fc_block_read_agg_sum_us_total Firecracker's metric block.read_agg.sum_us.
# TYPE fc_block_read_agg_sum_us_total counter
fc_block_read_agg_sum_us_total{namespace="k8s.io",sandbox="pod-1",drive="root"} 20
# HELP fc_block_read_count_total Firecracker's metric block.read_count.
# TYPE fc_block_read_count_total counter
fc_block_read_count_total{namespace="k8s.io",sandbox="pod-1",drive="b"} 0
fc_block_read_count_total{namespace="k8s.io",sandbox="pod-1",drive="root"} 7
# HELP fc_fs_request_count_total Firecracker's metric fs.request_count.
# TYPE fc_fs_request_count_total counter
fc_fs_request_count_total{namespace="k8s.io",sandbox="pod-1",filesystem="s"} 2
# HELP fc_latencies_us_pause_vm Firecracker's metric latencies_us.pause_vm.
# TYPE fc_latencies_us_pause_vm gauge
fc_latencies_us_pause_vm{namespace="k8s.io",sandbox="pod-1"} 8
# HELP fc_net_rx_bytes_count_total Firecracker's metric net.rx_bytes_count.
# TYPE fc_net_rx_bytes_count_total counter
fc_net_rx_bytes_count_total{namespace="k8s.io",sandbox="pod-1",iface="eth0"} 100
# HELP fc_vcpu_exit_io_in_total Firecracker's metric vcpu.exit_io_in.
# TYPE fc_vcpu_exit_io_in_total counter
fc_vcpu_exit_io_in_total{namespace="k8s.io",sandbox="pod-1"} 1
# HELP fc_updated_seconds When the VM's metrics were written, since 1970.
# TYPE fc_updated_seconds gauge
fc_updated_seconds{namespace="k8s.io",sandbox="pod-1"} 1739000060.123
`
	if got := string(tab.text()); got != want {
		t.Errorf("got\n%s", got)
	}
}

// A VMM that has been taken over cannot have the shim hold, or write, whatever it likes.
func TestHostileLines(t *testing.T) {
	tab := newTable("n", "s")
	for i := range 1000 {
		line := fmt.Sprintf(`{"block_%d": {"read_count": 1, "name%d": 1}, "group%d": {"a": 1}, "block_a\"}\nx{": {"read_count": 1}, "net_%s": {"rx_count": 1}}`,
			i, i, i, strings.Repeat("x", 65))
		if err := tab.add([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(tab.values); n > 19 || len(tab.devices) > 19 {
		t.Errorf("%d series of %d devices", n, len(tab.devices))
	}
	for _, line := range []string{"", "[]", "{", "null x", `{"vcpu":`, strings.Repeat(`{"vcpu":`, 20000)} {
		if err := tab.add([]byte(line)); err == nil {
			t.Errorf("%.20q was taken for a line", line)
		}
	}
}

// The file comes with the first line and goes with the last; it is never there in part.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	path := Path(dir, "ns@pod-1")
	r, w := io.Pipe()
	other, otherW := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Follow(context.Background(), []io.ReadCloser{r, other}, path, "ns", "pod-1")
	}()
	// What one process has said stays when others speak.
	if _, err := io.WriteString(otherW, `{"utc_timestamp_ms":0,"fs_a":{"request_count":4}}`+"\n"); err != nil {
		t.Fatal(err)
	}
	var last os.FileInfo
	for n := 1; n <= 3; n++ {
		if _, err := fmt.Fprintf(w, `{"utc_timestamp_ms":%d,"vcpu":{"failures":1}}`+"\n", n); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("fc_vcpu_failures_total{namespace=\"ns\",sandbox=\"pod-1\"} %d\n", n)
		for begin := time.Now(); ; time.Sleep(time.Millisecond) {
			text, err := os.ReadFile(path)
			if err == nil && !strings.HasSuffix(string(text), "\n") {
				t.Fatalf("a part of the file: %q", text)
			}
			if strings.Contains(string(text), want) && strings.Contains(string(text), `filesystem="a"} 4`) {
				break
			}
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("%q, %v: want %q", text, err, want)
			}
		}
		st, err := os.Stat(path)
		if err != nil || last != nil && os.SameFile(st, last) {
			t.Errorf("version %d was written over the one before: %v", n, err)
		}
		last = st
	}
	if filepath.Base(path) != "ns@pod-1.prom" {
		t.Error(path)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", st, err)
	}
	// A line that is none, and a folder that has gone, end nothing.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "no JSON\n{}\n"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "{}\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	select {
	case <-done:
		t.Error("it has ended before the last of its readers")
	case <-time.After(10 * time.Millisecond):
	}
	otherW.Close()
	<-done
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A line without an end is not held in memory: then there are no metrics any more.
func TestEndlessLine(t *testing.T) {
	path := Path(t.TempDir(), "ns@pod-1")
	Follow(context.Background(), []io.ReadCloser{io.NopCloser(strings.NewReader(strings.Repeat("x", maxLine+1)))}, path, "ns", "pod-1")
}

func TestRemove(t *testing.T) {
	path := Path(t.TempDir(), "ns@pod-1")
	for range 2 {
		if err := Remove(path); err != nil {
			t.Error(err)
		}
		if err := write(path, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(temporary(path), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Remove(path); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

var valid = regexp.MustCompile(`^(# (HELP|TYPE) fc_[a-z0-9_]+ .*|fc_[a-z0-9_]+\{namespace="n",sandbox="s"(,(drive|iface|filesystem)="[A-Za-z0-9_-]+")?\} [0-9.]+)$`)

// FuzzLine: whatever a VMM writes, the file is of Prometheus' format, and bounded.
func FuzzLine(f *testing.F) {
	f.Add([]byte(`{"utc_timestamp_ms":1739000000000,"block_root":{"read_count":3,"read_agg":{"sum_us":14}}}`))
	f.Add([]byte(`{"vcpu":{"exit_io_in":1e3},"net_a":{"rx_count":18446744073709551615},"fs_":{},"block_\u0000":{"read_count":1}}`))
	f.Add([]byte(`{"vcpu":{"a":{"b":{"c":{"d":1}}}},"vcpu":null,"uart":[1]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		tab := newTable("n", "s")
		for range 2 {
			_ = tab.add(line)
		}
		for _, l := range strings.Split(strings.TrimSuffix(string(tab.text()), "\n"), "\n") {
			if !valid.MatchString(l) {
				t.Fatalf("%q", l)
			}
		}
	})
}
