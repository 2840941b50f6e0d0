package metrics

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/lineout"
)

// Period is the time between two lines, while a machine runs.
const Period = time.Minute

// ErrConfigured refuses a second file, in Firecracker's words.
var ErrConfigured error = errdefs.ErrAlreadyExists.WithMessage(
	"Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not allowed.")

// Recorder has what a process counts, and writes it to the file that Configure names: when a machine has started, each Period from then
// on, when somebody asks, and at the end. Until there is a file it costs its own size. Its methods may be called from any goroutine.
type Recorder struct {
	Process

	id     string
	period time.Duration
	part   bool // lines have a machine's groups only, as far as there are any

	mu      sync.Mutex
	out     *lineout.File // nil until Configure
	head    []byte
	machine *Machine
	stop    chan struct{} // closed by Close; nil while nothing is written each period
	done    sync.WaitGroup
}

// NewRecorder makes a recorder for the microVM of a name.
func NewRecorder(id string) *Recorder { return &Recorder{id: id, period: Period} }

// NewPartRecorder makes a recorder for a process that serves a part of a microVM: its lines have that part's groups, and no others.
func NewPartRecorder() *Recorder { return &Recorder{period: Period, part: true} }

// Configure opens the file that the lines go to, once a process. It need not be there before; a named pipe needs no reader.
func (r *Recorder) Configure(c config.Metrics) error {
	if err := c.Validate(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out != nil {
		return ErrConfigured
	}
	out, err := lineout.Open(c.MetricsPath)
	if err != nil {
		return config.BadString("metrics_path", c.MetricsPath, fmt.Sprintf("a file or named pipe to write to (%v)", err))
	}
	id := ""
	if c.EmitID {
		id = r.id
	}
	r.out, r.head = out, head(id, c.Properties)
	return nil
}

// Wanted says whether anybody reads what is counted, so that what costs more than an addition is worth it.
func (r *Recorder) Wanted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out != nil
}

// Started adds a machine's groups. If there is a file, it gets the first line, and one each Period from now on until Close.
func (r *Recorder) Started(m *Machine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.machine = m
	if r.out == nil || r.stop != nil {
		return
	}
	_ = r.flush() // counted
	stop := make(chan struct{})
	r.stop = stop
	r.done.Go(func() {
		t := time.NewTicker(r.period)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				_ = r.Flush()
			case <-stop:
				return
			}
		}
	})
}

// Flush writes a line now. Without a file it does nothing, as Firecracker's. What a line that nobody took would have said, the next one
// says.
func (r *Recorder) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.flush()
}

func (r *Recorder) flush() error {
	if r.out == nil {
		return nil
	}
	l := newLine(time.Now(), r.head)
	if !r.part {
		l.addAll(&r.Process, r.machine)
	}
	l.addShares(r.machine)
	l.end()
	if _, err := r.out.Write(l.text); err != nil {
		r.Logger.MissedMetrics.Inc()
		if errors.Is(err, unix.EAGAIN) {
			err = fmt.Errorf("nobody reads there: %w", err)
		}
		return fmt.Errorf("metrics could not be written: %w: %w", err, errdefs.ErrUnavailable)
	}
	l.commit()
	return nil
}

// Close writes the last line and closes the file. The machine has ended, so that the line has all of it. A second Close does nothing.
func (r *Recorder) Close() error {
	r.mu.Lock()
	if r.stop != nil {
		close(r.stop)
		r.stop = nil
	}
	r.mu.Unlock()
	r.done.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out == nil {
		return nil
	}
	err := errors.Join(r.flush(), r.out.Close())
	r.out = nil
	return err
}
