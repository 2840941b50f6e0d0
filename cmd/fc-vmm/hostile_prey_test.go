package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest/hostile"
)

// envProbe has a test binary that is fc-vmm tell how it is: a byte on descriptor 3 is answered by a line on descriptor 4.
const envProbe = "FC_VMM_TEST_PROBE"

// answerProbes is that. What the collector has freed is given back first, so that memory can be compared.
func answerProbes() {
	asks, answers := os.NewFile(3, "asks"), os.NewFile(4, "answers")
	var b [1]byte
	for {
		if _, err := asks.Read(b[:]); err != nil {
			return
		}
		debug.FreeOSMemory()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Fprintln(answers, runtime.NumGoroutine(), m.HeapAlloc)
	}
}

// subject is a process that must not grow.
type subject struct {
	*process
	ask    *os.File
	answer *bufio.Reader
	ended  chan struct{}
	before weight
}

// prey is an fc-vmm with a hostile guest.
type prey struct {
	*subject
	guest   *hostile.Guest
	devices []hostile.Device
	api     *api.Client
	host    *hostileHost
	ram     []byte
	rounds  int
}

// weight is what must not grow.
type weight struct {
	goroutines, files, threads int
	heap, private              int // bytes
}

// observe starts a process that answers probes.
func observe(t *testing.T, secret []byte, args ...string) *subject {
	t.Helper()
	askR, askW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answerR, answerW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(envProbe, "1")
	t.Setenv("FC_VMM_TEST_SECRET", string(secret)) // somewhere in the process's memory
	s := &subject{ask: askW, answer: bufio.NewReader(answerR), ended: make(chan struct{})}
	s.process = start(t, []*os.File{askR, answerW}, args...)
	askR.Close()
	answerW.Close()
	go func() {
		defer close(s.ended)
		s.Wait()
	}()
	t.Cleanup(func() {
		s.Process.Kill()
		<-s.ended
		askW.Close()
		answerR.Close()
	})
	return s
}

func (h *hostileHost) boot(t *testing.T) *prey {
	t.Helper()
	h.boots++
	sock, file := filepath.Join(h.dir, fmt.Sprintf("api%d.sock", h.boots)), filepath.Join(h.dir, "vm.json")
	text, err := json.Marshal(h.machine())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &prey{host: h, subject: observe(t, h.secret, "--api-sock", sock, "--config-file", file, "--boot-timer", "--level", "Warn")}
	p.api = answers(t, sock)
	for deadline := time.Now().Add(hostilePatience); ; time.Sleep(5 * time.Millisecond) {
		if p.ram, err = mapRAM(p.Process.Pid); err == nil {
			break
		}
		if p.alive() != nil || time.Now().After(deadline) {
			t.Fatalf("no guest RAM: %v, %v\n%s", p.alive(), err, p.out)
		}
	}
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.ended
		unix.Munmap(p.ram)
	})
	if p.guest, err = hostile.NewGuest(p.ram, hostilePatience, p.alive); err == nil {
		p.devices, err = p.guest.Devices()
	}
	if err != nil {
		p.dump()
		t.Fatalf("%v\n%s", err, p.out)
	}
	if len(p.devices) != len(h.targets)+1 {
		t.Fatalf("the guest finds %d devices, want %d", len(p.devices), len(h.targets)+1)
	}
	for i, d := range h.targets {
		if at := &p.devices[h.window(i)]; at.Type != d.typ {
			t.Fatalf("%s is a %v, want type %d", d.name, at, d.typ)
		}
	}
	if err := h.connect(); err != nil {
		t.Fatal(err)
	}
	return p
}

// mapRAM maps the guest RAM of a process.
func mapRAM(pid int) ([]byte, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		if target, err := os.Readlink(path); err != nil || !strings.Contains(target, "guest-ram") {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if fi, err := f.Stat(); err != nil || fi.Size() != hostile.RAMSize {
			return nil, fmt.Errorf("guest RAM: %v, %w", fi, errors.Join(err, errors.New("not yet of its size")))
		}
		return unix.Mmap(int(f.Fd()), 0, hostile.RAMSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	return nil, os.ErrNotExist
}

func (s *subject) alive() error {
	select {
	case <-s.ended:
		return fmt.Errorf("%q has ended: %v", s.Args[1:], s.ProcessState)
	default:
		return nil
	}
}

// suicide says whether the guest is to blame for its own end: it has run into a fault, or over its program, and fc-vmm has ended,
// or ends when told, as it should.
func (p *prey) suicide(t *testing.T) bool {
	if p.alive() == nil {
		if !p.guest.Shot() {
			return false
		}
		p.stop(t)
		return true
	}
	return p.ProcessState.ExitCode() == config.StatusBroken && !strings.Contains(p.out.String(), "goroutine ")
}

// dump has a process that does not do what it should show its goroutines.
func (s *subject) dump() {
	if s.alive() == nil {
		s.Process.Signal(syscall.SIGQUIT)
	}
	select {
	case <-s.ended:
	case <-time.After(hostilePatience):
		s.Process.Kill()
		<-s.ended
	}
}

// stop tells the process to end, which it must do as always.
func (s *subject) stop(t *testing.T) {
	t.Helper()
	s.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(hostilePatience):
		s.dump()
		t.Fatalf("%q does not end:\n%s", s.Args[1:], s.out)
	}
	if s.ProcessState.ExitCode() != config.StatusEnded || strings.Contains(s.out.String(), "not taken apart") {
		t.Fatalf("ended with %v:\n%s", s.ProcessState, s.out)
	}
}

// calm has f called when all devices have been reset, so that nothing is under way.
func (p *prey) calm(t *testing.T, f func()) {
	t.Helper()
	p.host.quiet.Lock()
	defer p.host.quiet.Unlock()
	for i := range p.devices {
		if err := p.guest.Reset(&p.devices[i]); err != nil {
			p.dump()
			t.Fatalf("%v\n%s", err, p.out)
		}
	}
	f()
}

// weigh waits until what is left is no more than before.
func (s *subject) weigh(t *testing.T) weight {
	t.Helper()
	var w weight
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		s.ask.Write([]byte{1})
		line, err := s.answer.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(line, &w.goroutines, &w.heap); err != nil {
			t.Fatal(err)
		}
		for dir, n := range map[string]*int{"fd": &w.files, "task": &w.threads} {
			list, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", s.Process.Pid, dir))
			if err != nil {
				t.Fatal(err)
			}
			*n = len(list)
		}
		if w.private, err = privateBytes(s.Process.Pid); err != nil {
			t.Fatal(err)
		}
		if grown := s.before.exceeded(w); len(grown) == 0 && s.before != (weight{}) || time.Now().After(deadline) {
			return w
		}
		// The first time: whatever is still ending has some moments for that.
		if s.before == (weight{}) && time.Until(deadline) < 17*time.Second {
			return w
		}
	}
}

// exceeded says what has grown from w to now, by more than what comes and goes.
func (w weight) exceeded(now weight) (grown []string) {
	for _, g := range []struct {
		what                string
		before, now, leeway int
	}{
		{"goroutines", w.goroutines, now.goroutines, 4},
		{"files", w.files, now.files, 4},
		{"threads", w.threads, now.threads, 80}, // Go keeps those that waited for the disk: 64 of virtio-fs at most
		{"bytes of heap", w.heap, now.heap, 2 << 20},
		{"bytes of private memory", w.private, now.private, 16 << 20}, // stacks of those threads among them
	} {
		if g.now > g.before+g.leeway {
			grown = append(grown, fmt.Sprintf("%s grew from %d to %d", g.what, g.before, g.now))
		}
	}
	return grown
}

func (s *subject) compare(t *testing.T) {
	t.Helper()
	now := s.weigh(t)
	t.Logf("%.20q before %+v, in the end %+v", s.Args[1:], s.before, now)
	for _, g := range s.before.exceeded(now) {
		t.Errorf("%.20q: %s", s.Args[1:], g)
	}
}

// privateBytes is what a process has for itself, but for guest RAM.
func privateBytes(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	sum, ours := 0, true
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"):
			ours = !strings.Contains(line, "guest-ram")
		case len(f) >= 2 && ours && (f[0] == "Private_Clean:" || f[0] == "Private_Dirty:"):
			var n int
			if _, err := fmt.Sscan(f[1], &n); err != nil {
				return 0, err
			}
			sum += n << 10
		}
	}
	return sum, nil
}
