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

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/parent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/fs"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/backend"
)

const fsUsage = `fc-vmm fs serves a host folder to a microVM of another process over vhost-user:
to fc-vmm's /filesystems/{id} with a socket, or to QEMU's vhost-user-fs device.
It needs no KVM, and its VMM needs no right on the folder.

Usage: fc-vmm fs --shared-dir DIR --socket-path PATH [OPTION]...

  --shared-dir DIR     the folder
  --socket-path PATH   socket to make and listen on; must not exist yet
  --fd N               listen on this inherited socket instead
  --readonly           refuse all changes
  --id ID              name of the microVM that it is for, for people who look at a
                       process list: 1 to 64 letters, digits, hyphens
  --fs-id ID           name of the folder in metrics: 1 to 64 letters, digits,
                       underscores (default shared)
  --tag TAG            what the folder is called for a VMM that asks for it, 1 to
                       36 bytes (default: --fs-id's)
  --metrics-path PATH  write metrics to this file or named pipe: a line of JSON at
                       the start, every 60 s, and at the end
  --parent-fd N        inherited read end of a pipe: when its other end closes, this
                       process is killed at once
  --help               print this

One VMM after another is served, until SIGTERM or SIGINT. SIGUSR1 has a line of
metrics written.
`

// folder is the command line of fc-vmm fs.
type folder struct {
	cfg      config.Filesystem
	id       string
	socket   string
	fd       int
	metrics  string
	parentFD int
}

func parseFolder(args []string) (folder, error) {
	var o folder
	f := flag.NewFlagSet("fc-vmm fs", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.cfg.PathOnHost, "shared-dir", "", "")
	f.StringVar(&o.socket, "socket-path", "", "")
	f.IntVar(&o.fd, "fd", -1, "")
	f.BoolVar(&o.cfg.IsReadOnly, "readonly", false, "")
	f.StringVar(&o.id, "id", "anonymous-instance", "")
	f.StringVar(&o.cfg.FSID, "fs-id", "shared", "")
	f.StringVar(&o.cfg.Tag, "tag", "", "")
	f.StringVar(&o.metrics, "metrics-path", "", "")
	f.IntVar(&o.parentFD, "parent-fd", -1, "")
	f.VisitAll(func(fl *flag.Flag) { fl.Value = &once{Value: fl.Value} })
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w (--help lists the options)", err)
	}
	if o.cfg.Tag == "" {
		o.cfg.Tag = o.cfg.FSID
	}
	return o, o.check(f.Args())
}

func (o *folder) check(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("argument %q is not expected: want options only (--help lists them)", rest[0])
	case !validID(o.id):
		return errBadID(o.id)
	case o.cfg.PathOnHost == "":
		return errors.New("--shared-dir is missing: want a folder")
	case (o.socket == "") == (o.fd < 0):
		return errors.New("want either --socket-path or --fd")
	}
	err := o.cfg.Validate()
	var fe *config.FieldError
	if !errors.As(err, &fe) {
		return err
	}
	names := map[string]string{"fs_id": "--fs-id", "filesystems/" + o.cfg.FSID + "/tag": "--tag", "filesystems/" + o.cfg.FSID + "/path_on_host": "--shared-dir"}
	return option(err, names[fe.Field])
}

// runFS is `fc-vmm fs`.
func runFS(args []string, stdout io.Writer) error {
	o, err := parseFolder(args)
	if errors.Is(err, flag.ErrHelp) {
		_, err = io.WriteString(stdout, fsUsage)
		return err
	}
	if err != nil {
		return err
	}
	if o.parentFD >= 0 {
		if err := parent.Follow(o.parentFD); err != nil {
			return err
		}
	}
	hold.AllowHugePages() // for the guest's RAM
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	return serveFolder(ctx, &o)
}

func serveFolder(ctx context.Context, o *folder) error {
	dev, err := fs.New(o.cfg, 1)
	if err != nil {
		return fmt.Errorf("--shared-dir: %w", err)
	}
	recorder := metrics.NewPartRecorder()
	if o.metrics != "" {
		if err := recorder.Configure(config.Metrics{MetricsPath: o.metrics}); err != nil {
			return option(err, "--metrics-path")
		}
	}
	recorder.Started(&metrics.Machine{Filesystems: []metrics.Named[metrics.Filesystem]{{ID: o.cfg.FSID, Counts: dev.Metrics()}}})
	defer closeMetrics(recorder)
	defer flushOnSignal(recorder)()
	l, err := o.listen()
	if err != nil {
		return err
	}
	defer l.Close() // also if serving has come to a bad end
	err = backend.Serve(ctx, l, dev)
	if closeErr := dev.Close(); closeErr != nil {
		log.L.WithError(closeErr).Warn("the folder is still in use")
	}
	return err
}

// flushOnSignal has a line written on SIGUSR1, until stop.
func flushOnSignal(r *metrics.Recorder) (stop func()) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGUSR1)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-asked:
				if err := r.Flush(); err != nil {
					log.L.WithError(err).Warn("metrics asked for by SIGUSR1")
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(asked)
		close(done)
	}
}

func (o *folder) listen() (*net.UnixListener, error) {
	var l net.Listener
	var err error
	if o.fd >= 0 {
		l, err = inherit("--fd", o.fd)
	} else {
		l, err = listen("--socket-path", o.socket)
	}
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("--fd is %d: want an inherited, listening Unix socket", o.fd)
	}
	return u, nil
}
