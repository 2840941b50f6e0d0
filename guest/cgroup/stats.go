// Package cgroup reads what the kernel counts for a container's cgroup (v2): statistics, and OOM kills as they happen. It
// never writes; that is libcontainer's.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Stats reads the statistics of the cgroup at dir. What a controller does not offer stays 0, and no limit is the largest
// uint64, as with containerd's own. CPU, memory, events and pids are never nil: clients count on that.
func Stats(dir string) (*stats.Metrics, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("read statistics: %w", err)
	}
	m := &stats.Metrics{
		Pids: &stats.PidsStat{}, CPU: &stats.CPUStat{}, Memory: &stats.MemoryStat{}, MemoryEvents: &stats.MemoryEvents{}, Io: &stats.IOStat{},
	}
	for _, f := range []struct {
		name string
		into proto.Message
	}{{"cpu.stat", m.CPU}, {"memory.stat", m.Memory}, {"memory.events", m.MemoryEvents}} {
		if err := readFlat(filepath.Join(dir, f.name), f.into); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		name string
		into *uint64
	}{
		{"pids.current", &m.Pids.Current}, {"pids.max", &m.Pids.Limit},
		{"memory.current", &m.Memory.Usage}, {"memory.max", &m.Memory.UsageLimit}, {"memory.peak", &m.Memory.MaxUsage},
		{"memory.swap.current", &m.Memory.SwapUsage}, {"memory.swap.max", &m.Memory.SwapLimit},
		{"memory.swap.peak", &m.Memory.SwapMaxUsage},
	} {
		var err error
		if *f.into, err = readValue(filepath.Join(dir, f.name)); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		name string
		into **stats.PSIStats
	}{{"cpu.pressure", &m.CPU.PSI}, {"memory.pressure", &m.Memory.PSI}, {"io.pressure", &m.Io.PSI}} {
		var err error
		if *f.into, err = readPressure(filepath.Join(dir, f.name)); err != nil {
			return nil, err
		}
	}
	var err error
	m.Io.Usage, err = readIO(filepath.Join(dir, "io.stat"))
	return m, err
}

// read returns a file's content, which is empty if there is no such file.
func read(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return string(b), err
}

// readFlat puts each "key value" of a file into the message's field of that name, if there is one of kind uint64: the
// kernel's keys are what containerd named its fields after.
func readFlat(path string, into proto.Message) error {
	text, err := read(path)
	if err != nil {
		return err
	}
	msg := into.ProtoReflect()
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		field := msg.Descriptor().Fields().ByName(protoreflect.Name(key))
		if field == nil || field.Kind() != protoreflect.Uint64Kind {
			continue
		}
		n, err := parse(value)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", path, key, err)
		}
		msg.Set(field, protoreflect.ValueOfUint64(n))
	}
	return nil
}

func readValue(path string) (uint64, error) {
	text, err := read(path)
	if err != nil || text == "" {
		return 0, err
	}
	n, err := parse(strings.TrimSpace(text))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

func parse(s string) (uint64, error) {
	if s == "max" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// readIO reads lines like "254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
func readIO(path string) ([]*stats.IOEntry, error) {
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	var entries []*stats.IOEntry
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue // a device without I/O
		}
		var e stats.IOEntry
		if _, err := fmt.Sscanf(fields[0], "%d:%d", &e.Major, &e.Minor); err != nil {
			return nil, fmt.Errorf("%s: device %q: %w", path, fields[0], err)
		}
		known := map[string]*uint64{"rbytes": &e.Rbytes, "wbytes": &e.Wbytes, "rios": &e.Rios, "wios": &e.Wios}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			into := known[key]
			if into == nil {
				continue
			}
			if *into, err = parse(value); err != nil {
				return nil, fmt.Errorf("%s: %s: %w", path, key, err)
			}
		}
		entries = append(entries, &e)
	}
	return entries, nil
}
