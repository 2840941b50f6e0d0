package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errMachine is why there is no status of CMD's: the machine died under it.
var errMachine = errors.New("the nested machine ended without a status")

// scratchSize is the logical size of the sparse disk behind FC_SCRATCH, in bytes.
const scratchSize = 32 << 30

// runNested runs the command in a QEMU machine of its own.
func runNested(ctx context.Context, s settings, work string, args []string) (int, error) {
	img, err := prepareImages(ctx, s.cache)
	if err != nil {
		return 0, fmt.Errorf("preparing the nested machine: %w", err)
	}
	qemu, err := findQEMU(s)
	if err != nil {
		return 0, err
	}
	cwd, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	mark := "\x00kvmhost-" + rand.Text() + " "
	script := initScript(s, img, cwd, args, mark)
	if err := os.WriteFile(filepath.Join(work, "init"), []byte(script), 0o600); err != nil {
		return 0, err
	}
	if err := makeScratch(ctx, filepath.Join(work, "scratch.img")); err != nil {
		return 0, err
	}
	var procs group
	defer procs.kill()
	if err := procs.startShare(ctx, work, "root", "/", true); err != nil {
		return 0, err
	}
	if s.out != "" {
		if err := procs.startShare(ctx, work, "out", s.out, false); err != nil {
			return 0, err
		}
	}

	outR, outW, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer outR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer errR.Close()
	m := exec.Command(qemu.path, qemuArgs(s, qemu, img, work)...)
	m.ExtraFiles = []*os.File{outW, errW}
	if m.Stderr, err = os.Create(filepath.Join(work, "qemu.log")); err != nil {
		return 0, err
	}
	err = procs.start(m)
	outW.Close()
	errW.Close()
	if err != nil {
		return 0, err
	}

	type result struct {
		status int
		err    error
	}
	done := make(chan result, 1)
	go func() {
		errDone := make(chan error, 1)
		go func() { _, err := relay(os.Stderr, errR, mark); errDone <- err }()
		status, err := relay(os.Stdout, outR, mark)
		done <- result{status, cmp.Or(err, <-errDone)}
	}()
	defer keepLog(s.log, filepath.Join(work, "console.log"))
	select {
	case r := <-done:
		if r.err != nil {
			return 0, fmt.Errorf("%w%s", r.err, tails(work))
		}
		return r.status, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// relay copies src to dst up to the mark, and gives the status that follows the mark.
// Without a mark before the end of src the machine has died.
func relay(dst io.Writer, src io.Reader, mark string) (int, error) {
	buf := make([]byte, 0, 128<<10)
	for {
		n, err := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if i := strings.Index(string(buf), mark); i >= 0 {
			var status int
			if _, serr := fmt.Sscanf(string(buf[i+len(mark):]), "%d\n", &status); serr == nil && buf[len(buf)-1] == '\n' {
				_, err := dst.Write(buf[:i])
				return status, err
			}
			if err != nil || len(buf) == cap(buf) {
				return 0, errMachine
			}
			continue
		}
		keep := 0
		if err == nil {
			keep = partial(buf, mark)
		}
		if _, werr := dst.Write(buf[:len(buf)-keep]); werr != nil {
			return 0, werr
		}
		if err != nil {
			return 0, errMachine
		}
		buf = append(buf[:0], buf[len(buf)-keep:]...)
	}
}

// partial is the length of the longest end of buf that could begin a mark.
func partial(buf []byte, mark string) int {
	for n := min(len(buf), len(mark)-1); n > 0; n-- {
		if strings.HasPrefix(mark, string(buf[len(buf)-n:])) {
			return n
		}
	}
	return 0
}

func makeScratch(ctx context.Context, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(scratchSize); err != nil {
		return err
	}
	return command(ctx, "mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard", path)
}

// group is the processes that make up a machine; all of them end with it.
type group struct{ cmds []*exec.Cmd }

func (g *group) start(c *exec.Cmd) error {
	// Setpgid: a terminal's Ctrl-C is ours to handle. Pdeathsig: nothing outlives us, not even after SIGKILL.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start %s: %w", c.Path, err)
	}
	g.cmds = append(g.cmds, c)
	return nil
}

func (g *group) kill() {
	for _, c := range g.cmds {
		syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		c.Wait()
	}
}

// startShare serves dir over virtio-fs at work/<tag>.sock and waits until it listens.
func (g *group) startShare(ctx context.Context, work, tag, dir string, readOnly bool) error {
	virtiofsd, err := exec.LookPath("virtiofsd")
	if err != nil {
		virtiofsd = "/usr/lib/qemu/virtiofsd" // where Debian 12 has it
	}
	sock := filepath.Join(work, tag+".sock")
	opts := []string{"--socket-path=" + sock, "-o", "source=" + dir, "-o", "sandbox=chroot", "-o", "xattr"}
	if readOnly {
		opts = append(opts, "-o", "cache=always")
	} else {
		opts = append(opts, "-o", "cache=auto")
	}
	c := exec.Command(virtiofsd, opts...)
	if c.Stderr, err = os.Create(filepath.Join(work, "virtiofsd-"+tag+".log")); err != nil {
		return err
	}
	if err := g.start(c); err != nil {
		return err
	}
	bound := time.Now().Add(20 * time.Second)
	for time.Now().Before(bound) && ctx.Err() == nil {
		if _, err := os.Stat(sock); err == nil {
			return nil
		}
		if unix.Kill(c.Process.Pid, 0) != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("virtiofsd for %s does not listen on %s%s", dir, sock, tails(work))
}

// tails are the last lines of the machine's logs, for an error's text.
func tails(work string) string {
	var b strings.Builder
	logs, _ := filepath.Glob(filepath.Join(work, "*.log"))
	for _, p := range logs {
		text, _ := os.ReadFile(p)
		lines := slices.DeleteFunc(strings.Split(string(text), "\n"), noise)
		if len(lines) == 0 {
			continue
		}
		lines = lines[max(0, len(lines)-40):]
		fmt.Fprintf(&b, "\n--- %s ---\n%s", filepath.Base(p), strings.Join(lines, "\n"))
	}
	return b.String()
}

// noise reports lines that every run has.
func noise(line string) bool {
	return line == "" || strings.Contains(line, "TCG doesn't support") || strings.Contains(line, "fv_") ||
		strings.Contains(line, "virtio_session_mount") || strings.Contains(line, "virtio_loop: ")
}

func keepLog(dst, src string) {
	if dst == "" {
		return
	}
	text, err := os.ReadFile(src)
	if err == nil {
		err = os.WriteFile(dst, text, 0o644)
	}
	if err != nil {
		say("KVMHOST_LOG: %v", err)
	}
}

// command runs a short tool; its output is part of the error.
func command(ctx context.Context, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
