package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/prometheus"
)

// metricsTimeout is how long a VM's file of metrics may outlive its fc-vmm, whose end closes the pipe that feeds it.
const metricsTimeout = time.Second

// metricsPath is where a VM's metrics are kept; empty if nobody wants them.
func (s *Settings) metricsPath(namespace, id string) string {
	if s.MetricsDir == "" {
		return ""
	}
	return prometheus.Path(s.MetricsDir, namespace, id)
}

// vmMetrics keeps a VM's metrics in a file, as long as anybody holds the other end of its pipe.
type vmMetrics struct{ over chan struct{} }

// openMetrics starts to follow a VM's metrics, and gives the end of the pipe that is for fc-vmm. Both are nil if nobody wants them.
func openMetrics(ctx context.Context, s *Settings, namespace, id string) (*vmMetrics, *os.File, error) {
	path := s.metricsPath(namespace, id)
	if path == "" {
		return nil, nil, nil
	}
	// For everybody to read, as its files are: collectors are not root.
	if err := os.MkdirAll(s.MetricsDir, 0o755); err != nil {
		return nil, nil, fmt.Errorf("metrics_dir: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make a pipe for metrics: %w", err)
	}
	m := &vmMetrics{over: make(chan struct{})}
	go func() {
		defer close(m.over)
		defer r.Close()
		prometheus.Follow(context.WithoutCancel(ctx), r, path, namespace, id)
	}()
	return m, w, nil
}

// wait returns when the file is gone. fc-vmm must have ended.
func (m *vmMetrics) wait() error {
	if m == nil {
		return nil
	}
	t := time.NewTimer(metricsTimeout)
	defer t.Stop()
	select {
	case <-m.over:
		return nil
	case <-t.C:
		return errors.New("the VM's metrics are still being written")
	}
}
