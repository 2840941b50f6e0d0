// Package prometheus keeps a VM's metrics in a file of Prometheus' text format, for whoever collects the files of a folder: node_exporter
// does (--collector.textfile.directory). Its input are the lines that fc-vmm and its file server write. They are not believed: only names that a line can have
// come through, and no more devices than a VM can have.
package prometheus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// maxLine bounds a line, in bytes: a machine with all its devices has less than a fifth of that.
const maxLine = 128 << 10

// Path is the file of a VM in a folder. The name is the caller's affair; two VMs must not have the same.
func Path(dir, name string) string {
	return filepath.Join(dir, name+".prom")
}

// Remove removes the file, and what a death in the middle of its writing may have left. That there is none is no error.
func Remove(path string) error {
	var errs []error
	for _, p := range []string{path, temporary(path)} {
		if err := os.Remove(p); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// temporary is where a file is written before it gets its name, by which no collector takes it for one.
func temporary(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
}

// Follow keeps the file at path up to date with the lines of all readers, until the last of them ends, and removes it then. It closes each
// at its end. What goes wrong with the file is logged once, until it is over.
func Follow(ctx context.Context, readers []io.ReadCloser, path, namespace, id string) {
	f := follower{path: path, table: newTable(namespace, id), log: log.G(ctx).WithField("file", path)}
	var all sync.WaitGroup
	for _, r := range readers {
		all.Go(func() { f.follow(r) })
	}
	all.Wait()
	if err := Remove(path); err != nil {
		f.log.WithError(err).Warn("the VM's metrics are still there")
	}
}

// follower is a file and what is in it.
type follower struct {
	path string
	log  *log.Entry

	mu      sync.Mutex
	table   *table
	failing bool
}

// follow takes the lines of one reader.
func (f *follower) follow(r io.ReadCloser) {
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 16<<10), maxLine)
	for lines.Scan() {
		f.add(lines.Bytes())
	}
	if err := lines.Err(); err != nil {
		f.log.WithError(err).Warn("some of the VM's metrics have ended")
	}
}

func (f *follower) add(line []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.table.add(line)
	if err == nil {
		err = write(f.path, f.table.text())
	}
	if err != nil && !f.failing {
		f.log.WithError(err).Warn("the VM's metrics are not up to date")
	}
	f.failing = err != nil
}

// write has the file be new as a whole: a collector never reads a part.
func write(path string, text []byte) error {
	// A file of its own: who else may write to the folder could have put a link there.
	if err := os.Remove(temporary(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temporary(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(temporary(path), path)
}

// series is a metric of a VM or, with a label, of one of its devices.
type series struct {
	name   string // as metrics.Kinds has it
	device string
}

// table is what the lines until now add up to.
type table struct {
	labels  string
	kinds   map[string]metrics.Kind
	values  map[series]uint64
	devices map[string]bool // groups of devices that have been seen
	ms      uint64          // of the last line, since 1970
}

func newTable(namespace, id string) *table {
	return &table{
		labels: fmt.Sprintf("namespace=%s,sandbox=%s", quote(namespace), quote(id)),
		kinds:  metrics.Kinds(), values: make(map[series]uint64), devices: make(map[string]bool),
	}
}

// add takes a line in.
func (t *table) add(line []byte) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	var groups map[string]any
	if err := dec.Decode(&groups); err != nil {
		return fmt.Errorf("a line of metrics: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("a line of metrics: something follows the object")
	}
	if ms, ok := number(groups["utc_timestamp_ms"]); ok {
		t.ms = ms
	}
	for name, g := range groups {
		kind, device := name, ""
		if k, id, ok := metrics.Device(name); ok {
			if !t.known(name, id) {
				continue
			}
			kind, device = k, id
		} else if _, _, sum := metrics.Device(name + "_x"); sum {
			continue // of the devices, which are all there
		}
		t.addGroup(kind, device, g)
	}
	return nil
}

// known says whether there may be a group of a device. Ids are letters, digits, underscores and hyphens.
func (t *table) known(group, id string) bool {
	if len(id) > config.MaxIDLen || strings.ContainsFunc(id, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return false
	}
	if !t.devices[group] && len(t.devices) >= config.MaxDevices {
		return false
	}
	t.devices[group] = true
	return true
}

func (t *table) addGroup(name, device string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if strings.Count(name, ".") > 2 {
			return // no name has more
		}
		for k, v := range v {
			t.addGroup(name+"."+k, device, v)
		}
	case json.Number:
		n, ok := number(v)
		switch s := (series{name, device}); t.kinds[name] {
		case metrics.Delta:
			if ok {
				t.values[s] += n
			}
		case metrics.Level:
			if ok {
				t.values[s] = n
			}
		}
	}
}
