package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// Log and metrics of this process: no part of the machine, so no part of its description either.

func (d document) logger(m member) (config.Logger, error) {
	var l config.Logger
	if err := d.fill(m.raw, m.at, &l, schema{}); err != nil {
		return l, err
	}
	return l, l.Validate()
}

func (d document) metrics(m member) (config.Metrics, error) {
	var c config.Metrics
	if err := d.fill(m.raw, m.at, &c, schema{required: []string{"metrics_path"}}); err != nil {
		return c, err
	}
	return c, c.Validate()
}

// observers are the sections of a document that are about the process.
type observers struct {
	logger  *config.Logger
	metrics *config.Metrics
}

// section decodes one of them, which is m.
func (o *observers) section(d document, m member) error {
	if string(m.raw) == "null" {
		return nil
	}
	if m.key == "logger" {
		l, err := d.logger(m)
		o.logger = &l
		return err
	}
	c, err := d.metrics(m)
	o.metrics = &c
	return err
}

// observe does what a document says, when all else in it is right: a file that has been opened cannot be taken back.
func (s *Server) observe(o *observers) error {
	if o.logger != nil {
		if err := s.setLogger(*o.logger); err != nil {
			return fmt.Errorf("logger: %w", err)
		}
	}
	if o.metrics != nil {
		if err := s.setMetrics(*o.metrics); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	return nil
}

func (s *Server) putLogger(ctx context.Context, r request) (any, error) {
	c, err := decode(r, document.logger)
	if err != nil {
		return nil, err
	}
	return nil, s.control.beforeStart(ctx, func() error { return s.setLogger(c) })
}

func (s *Server) setLogger(c config.Logger) error {
	if s.opts.Logger == nil {
		return errdefs.ErrNotImplemented.WithMessage("this process has no log that can be configured")
	}
	return s.opts.Logger(c)
}

func (s *Server) putMetrics(ctx context.Context, r request) (any, error) {
	c, err := decode(r, document.metrics)
	if err != nil {
		return nil, err
	}
	return nil, s.control.beforeStart(ctx, func() error { return s.setMetrics(c) })
}

func (s *Server) setMetrics(c config.Metrics) error {
	if s.opts.Metrics == nil {
		return errdefs.ErrNotImplemented.WithMessage("this process has no metrics that can be configured")
	}
	return s.metrics.Configure(c)
}

// flush writes a line of metrics. Before the start there is nothing to be flushed, as Firecracker has it.
func (s *Server) flush(ctx context.Context) error {
	return s.control.withMachine(ctx, func(Machine, context.Context) error { return s.metrics.Flush() })
}

// runState pauses or resumes the machine by f. It notes how long that took: with the wait for other requests, and without.
func (s *Server) runState(ctx context.Context, total, machine *metrics.Gauge, f func(Machine, context.Context) error) error {
	var all, own metrics.Latency
	outer := all.Start(true)
	err := s.control.withMachine(ctx, func(m Machine, ctx context.Context) error {
		inner := own.Start(true)
		err := f(m, ctx)
		inner.Stop()
		return err
	})
	outer.Stop()
	if err == nil {
		total.Set(all.Max.Value())
		machine.Set(own.Max.Value())
	}
	return err
}

// count counts a request by its endpoint, where Firecracker has a counter for it.
func (s *Server) count(method, path string, err error) {
	part, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	var all, fails *metrics.Counter
	switch method {
	case http.MethodGet:
		all = s.getCounter(part)
	case http.MethodPut:
		all, fails = s.putCounters(part)
	case http.MethodPatch:
		all, fails = s.patchCounters(part)
	}
	if all != nil {
		all.Inc()
	}
	if err != nil && fails != nil {
		fails.Inc()
	}
}

func (s *Server) getCounter(part string) *metrics.Counter {
	switch g := &s.metrics.Get; part {
	case "":
		return &g.InstanceInfo
	case "machine-config":
		return &g.MachineCfg
	case "mmds":
		return &g.MMDS
	case "version":
		return &g.VMMVersion
	}
	return nil
}

func (s *Server) putCounters(part string) (all, fails *metrics.Counter) {
	switch p := &s.metrics.Put; part {
	case "actions":
		return &p.Actions, &p.ActionsFails
	case "boot-source":
		return &p.BootSource, &p.BootSourceFails
	case "cpu-config":
		return &p.CPUCfg, &p.CPUCfgFails
	case "drives":
		return &p.Drive, &p.DriveFails
	case "logger":
		return &p.Logger, &p.LoggerFails
	case "machine-config":
		return &p.MachineCfg, &p.MachineCfgFails
	case "metrics":
		return &p.Metrics, &p.MetricsFails
	case "mmds":
		return &p.MMDS, &p.MMDSFails
	case "network-interfaces":
		return &p.Network, &p.NetworkFails
	case "serial":
		return &p.Serial, &p.SerialFails
	case "vsock":
		return &p.Vsock, &p.VsockFails
	}
	return nil, nil
}

func (s *Server) patchCounters(part string) (all, fails *metrics.Counter) {
	switch p := &s.metrics.Patch; part {
	case "drives":
		return &p.Drive, &p.DriveFails
	case "machine-config":
		return &p.MachineCfg, &p.MachineCfgFails
	case "mmds":
		return &p.MMDS, &p.MMDSFails
	case "network-interfaces":
		return &p.Network, &p.NetworkFails
	}
	return nil, nil
}
