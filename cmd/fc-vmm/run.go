package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/parent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

const (
	// stopTimeout is how long the machine may take to end when told to; its parts have shorter bounds of their own.
	stopTimeout = 15 * time.Second
	// answerTimeout is how long answers that are being written may take at the end.
	answerTimeout = 200 * time.Millisecond
)

// run is the program: it returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	began := time.Now()
	if len(args) > 0 && (args[0] == "hold" || args[0] == "fs") {
		if err := runRole(args[0], args[1:], stdout); err != nil {
			fmt.Fprintf(stderr, "fc-vmm %s: %v\n", args[0], err)
			return config.StatusBadConfig
		}
		return 0
	}
	s, err := parseFlags(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		io.WriteString(stdout, usage)
		return 0
	case err == nil && s.showVersion:
		fmt.Fprintln(stdout, "fc-vmm "+version())
		return 0
	}
	if err == nil {
		var status int
		if status, err = serve(&s, stdout, stderr, began); err == nil {
			return status
		}
	}
	fmt.Fprintln(stderr, "fc-vmm:", err)
	return config.StatusBadConfig
}

// runRole is one of the other things that this program is.
func runRole(role string, args []string, stdout io.Writer) error {
	if role == "hold" {
		return runHold(args)
	}
	return runFS(args, stdout)
}

// serve runs the microVM to its end. An error means that no guest ran.
func serve(s *settings, stdout, stderr io.Writer, began time.Time) (int, error) {
	if s.parentFD >= 0 {
		if err := parent.Follow(s.parentFD); err != nil {
			return 0, err
		}
	}
	hold.AllowHugePages() // for the guest's RAM
	// A reader of the console who leaves must not take the guest along.
	signal.Ignore(unix.SIGPIPE)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	recorder := metrics.NewRecorder(s.id)
	lines, err := openLog(s, stderr, &recorder.Logger.MissedLog)
	if err != nil {
		return 0, err
	}
	defer lines.Close()
	if err := openMetrics(s, recorder); err != nil {
		return 0, err
	}
	defer closeMetrics(recorder)
	phases := s.startup.timeline(began)
	metadata, err := newMetadata(s)
	if err != nil {
		return 0, err
	}

	booted := make(chan *vmm.Machine, 1)
	var machine atomic.Pointer[vmm.Machine] // the same, for who does not take it
	var base *vmm.Base                      // written before the server's first Boot; goes with the process if none comes
	start := func(ctx context.Context, cfg config.VM) (api.Machine, error) {
		phases.Mark("configure")
		cfg.BootTimer = s.bootTimer
		m, err := boot(ctx, cfg, vmm.Options{Console: stdout, Timeline: phases, Base: base, ID: s.id, Metadata: metadata, Latencies: recorder.Wanted()})
		if err != nil {
			return nil, err // not m: it would be no nil interface
		}
		recorder.Started(m.Metrics())
		machine.Store(m)
		booted <- m
		return m, nil
	}
	server := api.NewServer(api.Options{
		ID: s.id, Version: version(), Boot: start, MaxBody: s.maxPayload, Metadata: metadata, Logger: lines.Configure, Metrics: recorder,
		// Not earlier: it would delay the first answer, and whoever started this process may still be about to move it to its cgroups.
		Described: func() { base = vmm.Prepare("") },
	})
	var l net.Listener
	if !s.noAPI {
		if l, err = listenAPI(s); err != nil {
			return 0, err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
			defer cancel()
			server.Shutdown(ctx)
			l.Close() // which Serve may not have come to
		}()
	}
	s.startup.report(&recorder.APIServer)
	phases.Mark("api")
	failed := make(chan error, 1)
	go func() {
		// First the description: no client's request comes before it.
		if err := bootDescribed(server, s, machine.Load); err != nil {
			failed <- err
			return
		}
		if l != nil {
			failed <- server.Serve(l)
		}
	}()

	select {
	case sig := <-signals:
		log.L.WithField("signal", sig).Info("told to stop before the microVM was started")
		err = nil
	case err = <-failed:
	case m := <-booted:
		return follow(m, signals, failed), nil
	}
	// A start may be under way. What it has made on the host goes with its machine only.
	m, waitErr := lastMachine(server, booted, signals)
	switch {
	case waitErr != nil:
		log.L.WithError(waitErr).Error("not waiting for the microVM's start")
		return config.StatusBroken, nil
	case m == nil:
		return config.StatusEnded, err
	}
	status := stop(m, signals)
	if err != nil {
		log.L.WithError(err).Error("the API has failed")
		status = config.StatusBroken
	}
	return status, nil
}

// lastMachine has the server start nothing more, and gives the machine that a start under way has led to, or nil. It waits for
// that in bounded time; a signal ends the wait.
func lastMachine(server *api.Server, booted <-chan *vmm.Machine, signals <-chan os.Signal) (*vmm.Machine, error) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	retired := make(chan error, 1)
	go func() { retired <- server.Retire(ctx) }()
	select {
	case err := <-retired:
		if err != nil {
			return nil, err
		}
	case <-signals:
		return nil, errors.New("told to stop again")
	}
	select {
	case m := <-booted:
		return m, nil
	default:
		return nil, nil
	}
}

// boot makes a machine run.
func boot(ctx context.Context, cfg config.VM, opts vmm.Options) (*vmm.Machine, error) {
	m, err := vmm.New(ctx, cfg, opts)
	if err != nil {
		return nil, err
	}
	if err := m.Start(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// follow waits for the machine's end, or brings it about.
func follow(m *vmm.Machine, signals <-chan os.Signal, failed <-chan error) int {
	select {
	case <-m.Done():
	case sig := <-signals:
		log.L.WithField("signal", sig).Info("told to stop")
		return stop(m, signals)
	case err := <-failed:
		log.L.WithError(err).Error("the API has failed")
		stop(m, signals)
		return config.StatusBroken
	}
	return m.Wait().Reason.Status()
}

// stop ends the machine in bounded time; a second signal ends the wait.
func stop(m *vmm.Machine, signals <-chan os.Signal) int {
	go m.Close()
	select {
	case <-m.Done():
		return m.Wait().Reason.Status()
	case <-signals:
		log.L.Error("told to stop again: not waiting for the microVM's end")
	case <-time.After(stopTimeout):
		log.L.Errorf("the microVM did not end within %v", stopTimeout)
	}
	return config.StatusBroken
}

func listenAPI(s *settings) (net.Listener, error) {
	if s.apiFD >= 0 {
		return inherit("--api-fd", s.apiFD)
	}
	return listen("--api-sock", s.apiSock)
}

// version is what the build has recorded.
func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}
