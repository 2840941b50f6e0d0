package main

import (
	"errors"
	"io"

	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/logger"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// openLog directs the log. It keeps this program's own form until somebody configures it, here or over the API: then it is
// Firecracker's.
func openLog(s *settings, stderr io.Writer, missed *metrics.Counter) (*logger.Logger, error) {
	l := logger.New(s.id, stderr, missed)
	if s.given["log-path"] || s.given["show-level"] || s.given["show-log-origin"] || s.given["module"] {
		c := config.Logger{LogPath: s.logPath, Level: s.level, ShowLevel: &s.showLevel, ShowLogOrigin: &s.showLogOrigin, Module: &s.module}
		if err := l.Configure(c); err != nil {
			return nil, option(err, "--log-path")
		}
		log.L.Info("Running fc-vmm " + version())
		return l, nil
	}
	level, err := config.ParseLevel("--level", s.level)
	if err != nil {
		return nil, err
	}
	log.L.Logger.SetOutput(stderr)
	if level == config.LevelOff {
		level = "panic"
		log.L.Logger.SetOutput(io.Discard)
	}
	return l, log.SetLevel(level)
}

// openMetrics opens the file that the command line names for the metrics, if it does.
func openMetrics(s *settings, r *metrics.Recorder) error {
	if s.metricsPath == "" {
		return nil
	}
	return option(r.Configure(config.Metrics{MetricsPath: s.metricsPath}), "--metrics-path")
}

// option has an error about a field of the API speak of the command line's option.
func option(err error, name string) error {
	var fe *config.FieldError
	if errors.As(err, &fe) {
		return &config.FieldError{Field: name, Value: fe.Value, Want: fe.Want}
	}
	return err
}

// closeMetrics has the last line written.
func closeMetrics(r *metrics.Recorder) {
	if err := r.Close(); err != nil {
		log.L.WithError(err).Warn("the last metrics are lost")
	}
}
