// Package logger has the VMM's log written in Firecracker's form, to what an operator has named for it. It changes the one log of the
// process, containerd's log.L, which everybody logs through. A reader who is slow, or not there, must never hold the VMM up: lines that he does
// not take are lost, and counted.
package logger

import (
	"fmt"
	"io"
	"sync"

	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/lineout"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// ThreadField is a log field that says which of Firecracker's threads a line is from, where the thread's own name does not.
const ThreadField = "thread"

// Logger is the log's form and target.
type Logger struct {
	id     string
	missed *metrics.Counter

	mu         sync.RWMutex
	out        io.Writer
	file       *lineout.File // out, if it is one of ours
	module     string
	showLevel  bool
	showOrigin bool
}

// New makes a Logger for the microVM of a name; it changes nothing before Configure. The log stays where it is, out, until a file is named
// for it. missed counts the lines that nobody took.
func New(id string, out io.Writer, missed *metrics.Counter) *Logger {
	return &Logger{id: id, out: out, missed: missed}
}

// Configure changes what c says, after which the log is in Firecracker's form. After an error it is as it was.
func (l *Logger) Configure(c config.Logger) error {
	if err := c.Validate(); err != nil {
		return err
	}
	level, err := config.ParseLevel("level", c.Level)
	if err != nil {
		return err
	}
	var file *lineout.File
	if c.LogPath != "" {
		if file, err = lineout.Open(c.LogPath); err != nil {
			return config.BadString("log_path", c.LogPath, fmt.Sprintf("a file or named pipe to write to (%v)", err))
		}
	}
	old := l.set(c, file)
	base := log.L.Logger
	base.SetReportCaller(l.needsCaller())
	base.SetFormatter(l)
	base.SetOutput(l)
	if level == config.LevelOff {
		level = "panic" // nobody logs at that
	}
	err = log.SetLevel(level)
	if old != nil {
		_ = old.Close() // what it does not take any more is lost
	}
	return err
}

// set takes over what c says, and gives the file that is of no use any more.
func (l *Logger) set(c config.Logger, file *lineout.File) (old *lineout.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if file != nil {
		old, l.file, l.out = l.file, file, file
	}
	if c.ShowLevel != nil {
		l.showLevel = *c.ShowLevel
	}
	if c.ShowLogOrigin != nil {
		l.showOrigin = *c.ShowLogOrigin
	}
	if c.Module != nil {
		l.module = *c.Module
	}
	return old
}

// needsCaller says whether a line must know where it comes from, which costs a walk over the stack.
func (l *Logger) needsCaller() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.showOrigin || l.module != ""
}

// Write takes a formatted line. It never fails: a line that is lost is counted.
func (l *Logger) Write(line []byte) (int, error) {
	if len(line) == 0 {
		return 0, nil // kept back by Format
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if _, err := l.out.Write(line); err != nil {
		l.missed.Inc()
	}
	return len(line), nil
}

// Close closes the file, if there is one. Lines that come later are lost.
func (l *Logger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file, l.out = nil, io.Discard
	return err
}
