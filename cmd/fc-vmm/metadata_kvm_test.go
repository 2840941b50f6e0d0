package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// readme runs the block of README.md's shell code in which text is, with the functions that other blocks define, and gives its output.
func readme(t *testing.T, text, sock string) string {
	t.Helper()
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip(err)
	}
	doc, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	script := "set -e\n" + strings.Join(regexp.MustCompile(`(?m)^\w+\(\) \{.*\}$`).FindAllString(string(doc), -1), "\n") + "\n"
	found := false
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(doc), -1) {
		if strings.Contains(block[1], text) {
			script += block[1]
			found = true
		}
	}
	if !found {
		t.Fatalf("no block with %q", text)
	}
	script = strings.NewReplacer("/tmp/fc.sock", sock, "curl ", curl+" --fail-with-body ").Replace(script)
	out, err := exec.Command("bash", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
	return string(out)
}

// TestMetadataInGuest follows README's example; then the host changes what a guest is waiting for.
func TestMetadataInGuest(t *testing.T) {
	vmmtest.NeedKVM(t)
	runtime.LockOSThread() // for good
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs a network namespace of its own:", err)
	}
	dir := t.TempDir()
	file, sock, console := filepath.Join(dir, "metadata.json"), filepath.Join(dir, "fc.sock"), filepath.Join(dir, "console")
	counts := filepath.Join(dir, "metrics")
	if err := os.WriteFile(file, []byte(`{"old": true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, nil, "--api-sock", sock, "--metadata", file, "--metrics-path", counts)
	c := answers(t, sock)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var data json.RawMessage
	if must(c.GetMetadata(ctx, &data)); string(data) != `{"old":true}` {
		t.Errorf("from the file: %s", data)
	}
	args := "console=ttyS0 reboot=k panic=-1 quiet"
	script := `exec >/dev/console 2>&1
ip addr add 10.72.0.2/24 dev eth0; ip link set eth0 up; ip route add 169.254.169.254 dev eth0
token=$(printf 'PUT /latest/api/token HTTP/1.0\r\nX-metadata-token-ttl-seconds: 21600\r\n\r\n' | nc -w 60 169.254.169.254 80 | tail -n 1)
get() { wget -q -O - --header "X-metadata-token: $token" http://169.254.169.254/latest/meta-data/$1; echo; }
url=http://169.254.169.254/latest
wget -q -O - $url; wget -q -O - --header "X-metadata-token: wrong" $url
echo "keys: $(get)"; echo "id: $(get ami-id)"
until get news | grep .; do sleep 0.1; done
sleep 0.2`
	must(c.PutBootSource(ctx, config.BootSource{KernelImagePath: vmmtest.Kernel(t), InitrdPath: vmmtest.Busybox(t, script), BootArgs: &args}))
	must(c.PutSerial(ctx, config.Serial{SerialOutPath: console}))
	must(c.PutNetworkInterface(ctx, config.NetworkInterface{IfaceID: "eth0", HostDevName: "fcmeta"}))
	if got, want := strings.TrimSpace(readme(t, "put mmds/config", sock)), `{"latest":{"meta-data":{"ami-id":"ami-87654321"}}}`; got != want {
		t.Errorf("README's example gives %s, want %s", got, want)
	}
	must(c.Start(ctx))
	has := func(text string) {
		t.Helper()
		consoleHas(ctx, t, console, text)
	}
	has("keys: ami-id\nid: ami-87654321\n")
	must(c.PatchMetadata(ctx, json.RawMessage(`{"latest": {"meta-data": {"news": "hello, guest"}}}`)))
	has("\nhello, guest\n")
	if ws, out := p.end(t); ws.ExitStatus() != config.StatusPoweredOff {
		t.Errorf("ended with %v:\n%s", ws, out)
	}
	lines := metricLines(t, counts)
	mmds := func(name string) float64 { return sum(lines, "mmds", name) }
	for name, want := range map[string]float64{"rx_no_token": 1, "rx_invalid_token": 1, "rx_bad_eth": 0, "rx_accepted_err": 0, "tx_errors": 0} {
		if n := mmds(name); n != want {
			t.Errorf("%s is %v, want %v", name, n, want)
		}
	}
	// A token, two refusals, the keys, the id and the news at least have each a connection; most have ended when the guest did.
	created, destroyed := mmds("connections_created"), mmds("connections_destroyed")
	if created < 6 || destroyed < created-2 || destroyed > created {
		t.Errorf("%v connections created, %v destroyed", created, destroyed)
	}
	// Frames are TCP segments, and ARP.
	if in, tcp := mmds("rx_accepted"), mmds("rx_count"); tcp < 3*created || in <= tcp {
		t.Errorf("%v frames in, %v of them segments, of %v connections", in, tcp, created)
	}
	if out, made, bytes := mmds("tx_frames"), mmds("tx_count"), mmds("tx_bytes"); out != made || out < 3*created || bytes < 54*out {
		t.Errorf("%v frames out, %v made, %v bytes", out, made, bytes)
	}
}
