package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// attempts is how often a part is tried: what emulates a counting machine can stand still or die. With -check, which has a time to
// be done in, it is one less.
const attempts = 3

// atOnce is how many machines run side by side: each is one thread of work, and in counted time they do not disturb each other.
func atOnce(o options) int {
	if o.clock == wall {
		return 1
	}
	return 2
}

// measure runs all parts, and gives what figures there are also if a part has failed at every attempt.
func measure(ctx context.Context, o options) ([]Figure, error) {
	work, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	built, err := build(ctx, o, work)
	if err != nil {
		return nil, err
	}
	parts := full()
	if o.check {
		parts = short()
	}
	results := make([][]Figure, len(parts))
	errs := make([]error, len(parts))
	slots := make(chan struct{}, atOnce(o))
	var all sync.WaitGroup
	for i, p := range parts {
		if !o.only.MatchString(p.name) {
			continue
		}
		slots <- struct{}{} // here, so that parts begin in their order
		all.Go(func() {
			defer func() { <-slots }()
			results[i], errs[i] = runPart(ctx, o, p, built)
		})
	}
	all.Wait()
	var figures []Figure
	for _, r := range results {
		figures = append(figures, r...)
	}
	sizes, err := sizes(o)
	return append(figures, sizes...), errors.Join(append(errs, err)...)
}

// programs are what runs in the machines: the benchmarks, the init of their guests, and benchmarks of packages.
type programs struct {
	bench, guest string
	micro        []string
}

func build(ctx context.Context, o options, dir string) (programs, error) {
	p := programs{bench: filepath.Join(dir, "bench.test"), guest: filepath.Join(dir, "guest")}
	commands := [][]string{
		{"test", "-c", "-o", p.bench, "./integration/bench"},
		{"build", "-trimpath", "-ldflags", "-s -w", "-o", p.guest, "./integration/bench/guest"},
	}
	for _, pkg := range microPackages() {
		program := filepath.Join(dir, path.Base(pkg)+".test")
		p.micro = append(p.micro, program)
		commands = append(commands, []string{"test", "-c", "-o", program, pkg})
	}
	for _, args := range commands {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir, cmd.Env = o.root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return p, fmt.Errorf("building the benchmarks: %w\n%s", err, out)
		}
	}
	return p, nil
}

// runPart runs a part in a machine, in a new one if that dies.
func runPart(ctx context.Context, o options, p part, built programs) ([]Figure, error) {
	for n := 1; ; n++ {
		began := time.Now()
		say("%s …", p.name)
		out, status, err := inMachine(ctx, o, p, built)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		took := time.Since(began).Round(time.Second)
		if status == 0 {
			figures, err := parseFigures(bytes.NewReader(out))
			if err == nil && len(figures) == 0 {
				err = fmt.Errorf("%s: no benchmark matches %s\n%s", p.name, p.bench, tail(out))
			}
			say("%s: %d figures, %v", p.name, len(figures), took)
			return figures, err
		}
		err = fmt.Errorf("%s: status %d after %v\n%s", p.name, status, took, tail(out))
		if n == attempts || o.check && n == attempts-1 || ctx.Err() != nil {
			return nil, err
		}
		say("%v\nonce more, in a new machine", err)
	}
}

// tail is the last 40 lines of a part's output.
func tail(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// inMachine returns a part's output and status; an error says that there was neither.
func inMachine(ctx context.Context, o options, p part, built programs) ([]byte, int, error) {
	rounds := p.rounds
	if rounds == 0 {
		rounds = o.rounds
	}
	args := []string{
		"-test.run", "^$", "-test.bench", p.bench, "-test.benchtime", strconv.Itoa(rounds) + "x",
		// Below kvmhost's own limit, so that a benchmark that hangs says where.
		"-test.timeout", (p.limit - 20*time.Second).String(),
	}
	command := append([]string{built.bench}, args...)
	if p.micro {
		command = append([]string{"sh", "-ec", "for program in " + strings.Join(built.micro, " ") + `; do "$program" "$@"; done`, "sh", "-test.benchmem"}, args...)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(o.root, "integration", "kvmhost"), command...)
	cmd.Dir = filepath.Join(o.root, "integration")
	cmd.Env = append(os.Environ(), "FC_BIN_DIR="+o.bin, "FC_REQUIRE_KVM=1", "FC_BENCH_GUEST="+built.guest, "KVMHOST_TIMEOUT="+strconv.Itoa(int(p.limit.Seconds())))
	if o.clock == counted {
		cmd.Env = append(cmd.Env, "KVMHOST=nested", "ICOUNT=1")
	}
	if p.memory != "" {
		cmd.Env = append(cmd.Env, "MEM="+p.memory)
	}
	cmd.Env = append(cmd.Env, p.env...)
	var out, messages bytes.Buffer
	cmd.Stdout = io.MultiWriter(&out, &progress{part: p.name})
	cmd.Stderr = &messages
	// kvmhost ends its machine when it is asked to; to kill it would leave that to the next run.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, 0, err
	}
	return append(out.Bytes(), messages.Bytes()...), cmd.ProcessState.ExitCode(), nil
}

// progress shows each figure as soon as it is there.
type progress struct {
	part string
	line []byte
}

func (p *progress) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\n' {
			p.line = append(p.line, c)
			continue
		}
		if benchLine.Match(p.line) {
			say("%s: %s", p.part, p.line)
		}
		p.line = p.line[:0]
	}
	return len(b), nil
}
