package metrics

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Named is a device's group with the device's id.
type Named[T any] struct {
	ID     string
	Counts *T
}

// Machine lists the groups of a machine's parts; what it has not stays nil. They are added up where a line has one for several.
type Machine struct {
	Balloon     *Balloon
	Blocks      []Named[Block]
	Entropy     *Entropy
	Filesystems []Named[Filesystem]
	I8042       *I8042
	Interrupts  []*Interrupts
	MMDS        *MMDS
	Nets        []Named[Net]
	UART        *UART
	VCPUs       []*VCPU
	Vsock       *Vsock
	// VhostUserBlocks and VhostUserFilesystems are of devices that other processes serve.
	VhostUserBlocks, VhostUserFilesystems []Named[VhostUser]
}

// copied is a group and what it was at one moment, in a struct of the same type, of which a line is made.
type copied struct{ from, to reflect.Value }

// line is a line in the making. Each group is read once, so that sums are those of what they are of.
type line struct {
	text  []byte
	reads []copied
}

// commit says that the line has been written: the next one has what comes after it.
func (l *line) commit() {
	for _, c := range l.reads {
		pairs(c.from, c.to, func(from, to any) {
			if c, ok := from.(*Counter); ok {
				c.told = to.(*Counter).n.Load()
			}
		})
	}
}

// newLine begins a line. head is what comes before the groups: members of the object, each with a comma behind it. Each group is
// read when it is added, once, so that sums are those of what they are of.
func newLine(now time.Time, head []byte) *line {
	l := &line{text: make([]byte, 0, 8<<10)}
	l.text = append(l.text, `{"utc_timestamp_ms":`...)
	l.text = strconv.AppendInt(l.text, now.UnixMilli(), 10)
	l.text = append(append(l.text, ','), head...)
	return l
}

// addAll adds all groups that Firecracker's lines have. m is nil while there is no machine.
func (l *line) addAll(p *Process, m *Machine) {
	if m == nil {
		m = new(Machine) // zeros
	}
	addGroup(l, "api_server", &p.APIServer)
	addGroup(l, "balloon", m.Balloon)
	addNamed(l, "block", m.Blocks)
	addGroup(l, "deprecated_api", &p.DeprecatedAPI)
	addGroup(l, "get_api_requests", &p.Get)
	addGroup(l, "i8042", m.I8042)
	addGroup(l, "uart", m.UART)
	addGroup(l, "latencies_us", &p.Latencies)
	addGroup(l, "logger", &p.Logger)
	addGroup(l, "mmds", m.MMDS)
	addNamed(l, "net", m.Nets)
	addGroup(l, "patch_api_requests", &p.Patch)
	addGroup(l, "put_api_requests", &p.Put)
	addGroup(l, "seccomp", &p.Seccomp)
	addGroup(l, "vcpu", m.VCPUs...)
	addGroup(l, "vmm", &p.VMM)
	addGroup(l, "signals", &p.Signals)
	addGroup(l, "vsock", m.Vsock)
	addGroup(l, "entropy", m.Entropy)
	addGroup[Pmem](l, "pmem")
	addGroup(l, "interrupts", m.Interrupts...)
	addGroup[MemoryHotplug](l, "memory_hotplug")
	addEach(l, vhostUserBlock, m.VhostUserBlocks)
	addEach(l, vhostUserFS, m.VhostUserFilesystems)
}

// addShares adds the groups of file systems, if there are any.
func (l *line) addShares(m *Machine) {
	if m != nil && len(m.Filesystems) > 0 {
		addNamed(l, "fs", m.Filesystems)
	}
}

// end closes the object.
func (l *line) end() {
	l.text[len(l.text)-1] = '}'
	l.text = append(l.text, '\n')
}

// addGroup adds the sum of groups, of which there may be one or none.
func addGroup[T any](l *line, name string, groups ...*T) {
	var sum T
	for _, g := range groups {
		if g != nil {
			add(reflect.ValueOf(&sum).Elem(), l.read(reflect.ValueOf(g).Elem()))
		}
	}
	l.append(name, reflect.ValueOf(&sum).Elem())
}

// addEach adds groups by their devices' ids.
func addEach[T any](l *line, name string, groups []Named[T]) {
	for _, g := range groups {
		l.append(name+"_"+g.ID, l.read(reflect.ValueOf(g.Counts).Elem()))
	}
}

// addNamed adds groups by their devices' ids, and their sum.
func addNamed[T any](l *line, name string, groups []Named[T]) {
	var sum T
	for _, g := range groups {
		v := l.read(reflect.ValueOf(g.Counts).Elem())
		l.append(name+"_"+g.ID, v)
		add(reflect.ValueOf(&sum).Elem(), v)
	}
	l.append(name, reflect.ValueOf(&sum).Elem())
}

// read gives what a group is now, and notes that for commit.
func (l *line) read(from reflect.Value) reflect.Value {
	to := reflect.New(from.Type()).Elem()
	add(to, from)
	l.reads = append(l.reads, copied{from, to})
	return to
}

// append adds a group's values, and a comma.
func (l *line) append(name string, group reflect.Value) {
	l.text = append(strconv.AppendQuote(l.text, name), ':', '{')
	for i := range group.NumField() {
		key := jsonName(group.Type().Field(i))
		switch v := group.Field(i).Addr().Interface().(type) {
		case *Counter:
			l.value(key, v.n.Load()-v.told)
		case *Gauge:
			l.value(key, v.Value())
		default:
			l.append(key, group.Field(i))
		}
	}
	l.text[len(l.text)-1] = '}'
	l.text = append(l.text, ',')
}

func (l *line) value(key string, v uint64) {
	l.text = append(strconv.AppendQuote(l.text, key), ':')
	l.text = append(strconv.AppendUint(l.text, v, 10), ',')
}

// add adds a group to another one of the same type: gauges too, whose sum nobody asks for, but of latencies, whose extremes are of
// both.
func add(to, from reflect.Value) {
	pairs(to, from, func(to, from any) {
		switch to := to.(type) {
		case *Counter:
			from := from.(*Counter)
			to.n.Add(from.n.Load())
			to.told += from.told
		case *Gauge:
			to.v.Add(from.(*Gauge).Value())
		case *Latency:
			from := from.(*Latency)
			to.extend(from.Min.Value(), from.Max.Value())
		}
	})
}

// pairs calls f for the fields of two groups of one type: counters, gauges, and latencies before the counter in them. A latency's
// gauges are its own matter.
func pairs(a, b reflect.Value, f func(a, b any)) {
	for i := range a.NumField() {
		x, y := a.Field(i).Addr().Interface(), b.Field(i).Addr().Interface()
		f(x, y)
		if l, ok := x.(*Latency); ok {
			f(&l.Sum, &y.(*Latency).Sum)
		}
	}
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// head is the optional members of a line behind its time, as Firecracker has them.
func head(id string, properties map[string]string) []byte {
	var b []byte
	if id != "" {
		b = append(strconv.AppendQuote(append(b, `"id":`...), id), ',')
	}
	if len(properties) > 0 {
		text, _ := json.Marshal(properties) // strings always marshal
		b = append(append(append(b, `"properties":`...), text...), ',')
	}
	return b
}
