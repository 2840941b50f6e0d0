package apitest

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api/openapitest"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

const (
	workers = 4
	// lifetime is how long one fc-vmm is asked, with a guest in its later half.
	lifetime = 5 * time.Second
	// maxDescriptors is more than any configuration needs: devices have a few each.
	maxDescriptors = 300
)

func itoa(n int) string { return strconv.Itoa(n) }

func setting(t *testing.T, name string, otherwise int) int {
	t.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv(name), itoa(otherwise)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestFuzz is the whole.
func TestFuzz(t *testing.T) {
	vmmtest.NeedKVM(t)
	program := binary(t)
	kernel, initrd := vmmtest.Kernel(t), vmmtest.Busybox(t, "sleep 1000")
	ops := document(t)
	seed := uint64(setting(t, "FC_SEED", 1))
	end := time.Now().Add(time.Duration(setting(t, "FC_API_SECONDS", 20)) * time.Second)
	var sum tally
	lives := 0
	for ; time.Now().Before(end); lives++ {
		dir, err := os.MkdirTemp("", "apifuzz") // short: a socket's path must fit
		if err != nil {
			t.Fatal(err)
		}
		life(t, program, dir, ops, files(t, dir, kernel, initrd), seed+uint64(lives)*1000, &sum)
		os.RemoveAll(dir)
	}
	t.Logf("seed %d: %d lives of fc-vmm, %d of them with a guest, %d requests, of them odd %d; answers: %s", seed, lives, sum.started.Load(), sum.requests.Load(), sum.odd.Load(), &sum)
	if sum.started.Load() == 0 || sum.status[200].Load() == 0 || sum.status[204].Load() == 0 || sum.status[400].Load() == 0 {
		t.Error("something was never reached")
	}
}

// tally counts what has happened.
type tally struct {
	requests, odd, started atomic.Int64
	status                 [600]atomic.Int64
}

func (s *tally) String() string {
	var parts []string
	for code := range s.status {
		if n := s.status[code].Load(); n > 0 {
			parts = append(parts, fmt.Sprintf("%d×%d", n, code))
		}
	}
	return strings.Join(parts, " ")
}

// life is that of one fc-vmm.
func life(t *testing.T, program, dir string, ops []*openapitest.Operation, files []string, seed uint64, sum *tally) {
	v := startVMM(t, program, dir)
	var all sync.WaitGroup
	begin := time.Now()
	for w := range workers {
		f := &fuzzer{maker: &maker{rand.New(rand.NewPCG(seed, uint64(w))), files, 0.3}, v: v, ops: ops, sum: sum}
		all.Go(func() {
			started := false
			for time.Since(begin) < lifetime && !v.ended() && f.err == nil {
				if w == 0 && !started && time.Since(begin) > lifetime/2 {
					started = f.start()
				}
				f.step()
			}
			f.close()
			if f.err != nil {
				t.Errorf("worker %d, seed %d: %v\nlast requests:\n%s\noutput:\n%s", w, seed, f.err, strings.Join(f.last, "\n"), v.out.tail(20000))
			}
		})
	}
	all.Wait()
	if !v.ended() {
		if n := v.descriptors(); n > maxDescriptors {
			t.Errorf("%d descriptors are open after all connections have been closed", n)
		}
	}
	v.end(t)
	if text := v.out.tail(1 << 20); strings.Contains(text, "panic:") || strings.Contains(text, "fatal error:") {
		t.Errorf("output:\n%s", text)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// fuzzer is one worker, with its connection.
type fuzzer struct {
	*maker
	v    *vmm
	ops  []*openapitest.Operation
	sum  *tally
	conn net.Conn
	in   *bufio.Reader

	last  []string // requests, for the report of a failure
	fault string   // of the last refusal
	err   error
}

func (f *fuzzer) close() {
	if f.conn != nil {
		f.conn.Close()
		f.conn = nil
	}
}

// dial connects unless there is a connection. It fails only if the process goes on.
func (f *fuzzer) dial() bool {
	if f.conn != nil {
		return true
	}
	c, err := net.Dial("unix", f.v.sock)
	if err != nil {
		if !f.gone() {
			f.err = err
		}
		return false
	}
	f.conn, f.in = c, bufio.NewReader(c)
	return true
}

// gone says whether the process has ended, or is just about to: its guest has.
func (f *fuzzer) gone() bool {
	select {
	case <-f.v.exited:
		return true
	case <-time.After(20 * time.Second):
		return false
	}
}

func (f *fuzzer) note(text string) {
	f.last = append(f.last, fmt.Sprintf("%.300q", text))
	f.last = f.last[max(len(f.last)-20, 0):]
}

// step sends one request, or a few at once.
func (f *fuzzer) step() {
	o := pick(f.maker, f.ops...)
	id := f.id()
	path, body := o.URL(strings.NewReplacer(" ", "%20", "\x00", "%00").Replace(id)), ""
	if o.Method != "GET" && o.Method != "DELETE" || f.chance(0.02) {
		body = f.body(o, id)
	}
	f.sum.requests.Add(1)
	if f.chance(0.2) {
		f.sum.odd.Add(1)
		f.close()
		f.exchange(f.odd(o.Method, path, body), o.Method, nil)
		f.close()
		return
	}
	f.exchange(wire{pieces: []string{plain(o.Method, path, body)}, answers: 1}, o.Method, o.Answer)
}

// start has a guest boot, whatever has been configured, and says whether one runs.
func (f *fuzzer) start() bool {
	kernel := f.v.dir + pick(f.maker, "/idle", "/kernel")
	boot := fmt.Sprintf(`{"kernel_image_path": %s, "boot_args": "console=ttyS0 quiet panic=1 reboot=k", "initrd_path": %s}`, quote(kernel), quote(f.v.dir+"/initrd"))
	f.ask("PUT", "/boot-source", boot)
	f.ask("PATCH", "/machine-config", `{"mem_size_mib": 128}`)
	for _, id := range []string{"a", "b", "c", "root", "1"} { // only those of which the host has what they need
		f.ask("PUT", "/drives/"+id, fmt.Sprintf(`{"drive_id": %q, "path_on_host": %s, "is_root_device": false}`, id, quote(f.v.dir+"/disk")))
		f.ask("DELETE", "/network-interfaces/"+id, "")
		f.ask("DELETE", "/filesystems/"+id, "")
	}
	f.ask("PUT", "/filesystems/a", fmt.Sprintf(`{"fs_id": "a", "tag": "a", "path_on_host": %s}`, quote(f.v.dir+"/folder")))
	f.ask("PUT", "/network-interfaces/a", `{"iface_id": "a", "host_dev_name": "fuzz0"}`)
	f.ask("PUT", "/serial", `{}`)
	f.ask("PUT", "/vsock", fmt.Sprintf(`{"guest_cid": 3, "uds_path": %s}`, quote(f.v.dir+"/v.sock")))
	// Another worker may have been quicker, by chance.
	f.fault = ""
	f.exchange(wire{pieces: []string{plain("PUT", "/actions", `{"action_type": "InstanceStart"}`)}, answers: 1}, "PUT", nil)
	started := f.err == nil && (f.fault == "" || strings.Contains(f.fault, "not supported after starting"))
	if started {
		f.sum.started.Add(1)
	}
	return started
}

func (f *fuzzer) ask(method, path, body string) {
	f.exchange(wire{pieces: []string{plain(method, path, body)}, answers: 1}, method, nil)
}

// exchange sends and checks what comes back; false means that the connection or the process has ended, or that something is wrong.
func (f *fuzzer) exchange(w wire, method string, answer *openapitest.Schema) bool {
	f.note(strings.Join(w.pieces, ""))
	method = cmp.Or(w.method, method)
	if f.err != nil || !f.dial() {
		return false
	}
	c := f.conn
	c.SetDeadline(time.Now().Add(bound))
	sent := make(chan struct{})
	go func() { // the server may answer before it has all
		defer close(sent)
		for i, p := range w.pieces {
			if i > 0 {
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			}
			if _, err := io.WriteString(c, p); err != nil {
				return
			}
		}
		if w.answers < 0 {
			c.(*net.UnixConn).CloseWrite()
		}
	}()
	defer func() { <-sent }()
	if w.deaf {
		<-sent
		f.close()
		return false
	}
	for n := 0; n < w.answers || w.answers < 0; n++ {
		resp, err := http.ReadResponse(f.in, &http.Request{Method: method})
		if err == nil {
			err = f.check(resp, method, answer)
		} else if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
			// The end of a connection is an answer to what is no request, and to the end of the guest.
			if w.answers == 1 && n == 0 && !f.gone() {
				f.err = fmt.Errorf("no answer: %w", err)
			}
			f.close()
			return false
		}
		if err != nil {
			f.err = err
			f.close()
			return false
		}
		if resp.Close {
			f.close()
			return false
		}
	}
	return true
}

func (f *fuzzer) check(resp *http.Response, method string, answer *openapitest.Schema) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("the body of an answer: %w", err)
	}
	f.sum.status[min(resp.StatusCode, 599)].Add(1)
	switch resp.StatusCode {
	case 100:
		return nil
	case 200:
		if answer != nil {
			if err := answer.Check(body); err != nil {
				return fmt.Errorf("an answer that is not as the document says: %w", err)
			}
		}
		return nil
	case 204:
		if len(body) > 0 {
			return errors.New("204 with a body")
		}
		return nil
	case 400, 413:
		f.fault = string(body)
		var fault struct {
			Message string `json:"fault_message"`
		}
		if method == "HEAD" || len(body) == 0 && resp.ContentLength <= 0 {
			return nil
		}
		if err := json.Unmarshal(body, &fault); err != nil || fault.Message == "" || len(fault.Message) > 4096 {
			return fmt.Errorf("%d without a fault message: %q", resp.StatusCode, body)
		}
		return nil
	}
	return fmt.Errorf("status %d: %q", resp.StatusCode, body)
}
