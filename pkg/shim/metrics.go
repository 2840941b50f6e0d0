package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/prometheus"
)

// metricsTimeout is how long a VM's file of metrics may outlive its processes, whose ends close the pipes that feed it.
const metricsTimeout = time.Second

// metricsPath is where a VM's metrics are kept; empty if nobody wants them.
func (s *Settings) metricsPath(namespace, id string) string {
	if s.MetricsDir == "" {
		return ""
	}
	return prometheus.Path(s.MetricsDir, vmName(namespace, id))
}

// vmMetrics keeps a VM's metrics in a file, as long as anybody holds the other end of one of its pipes.
type vmMetrics struct{ over chan struct{} }

// openMetrics starts to follow the metrics of a VM's n processes, and gives the ends of the pipes that are for them. All are nil if nobody
// wants them.
func openMetrics(ctx context.Context, s *Settings, namespace, id string, n int) (*vmMetrics, []*os.File, error) {
	path := s.metricsPath(namespace, id)
	if path == "" {
		return nil, nil, nil
	}
	// For everybody to read, as its files are: collectors are not root.
	if err := os.MkdirAll(s.MetricsDir, 0o755); err != nil {
		return nil, nil, fmt.Errorf("metrics_dir: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	var ours []io.ReadCloser
	var theirs []*os.File
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			for i := range ours {
				ours[i].Close()
				theirs[i].Close()
			}
			return nil, nil, fmt.Errorf("make a pipe for metrics: %w", err)
		}
		ours, theirs = append(ours, r), append(theirs, w)
	}
	m := &vmMetrics{over: make(chan struct{})}
	go func() {
		defer close(m.over)
		prometheus.Follow(context.WithoutCancel(ctx), ours, path, namespace, id)
	}()
	return m, theirs, nil
}

// wait returns when the file is gone. The VM's processes must have ended.
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
