package logger

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/log"
)

// timeFormat is Firecracker's: local time, with all nine digits of the nanoseconds, and no zone.
const timeFormat = "2006-01-02T15:04:05.000000000"

// Format makes a line: time [id:thread:level:file:line] message, of which level and origin are there only if they were asked for. Fields
// follow the message as key=value. A message of several lines becomes one. It makes nothing of a line that the module's filter keeps back.
func (l *Logger) Format(e *log.Entry) ([]byte, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.module != "" && !within(modulePath(e.Caller), l.module) {
		return nil, nil
	}
	b := new(bytes.Buffer)
	b.WriteString(e.Time.Local().Format(timeFormat))
	fmt.Fprintf(b, " [%s:%s", l.id, threadOf(e))
	if l.showLevel {
		b.WriteByte(':')
		b.WriteString(levelName(e.Level))
	}
	if l.showOrigin {
		b.WriteByte(':')
		b.WriteString(originOf(e.Caller))
	}
	b.WriteString("] ")
	b.WriteString(oneLine(e.Message))
	for _, k := range slices.Sorted(maps.Keys(e.Data)) {
		if k != ThreadField {
			fmt.Fprintf(b, " %s=%s", k, value(e.Data[k]))
		}
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func levelName(l log.Level) string {
	switch l {
	case log.TraceLevel:
		return "TRACE"
	case log.DebugLevel:
		return "DEBUG"
	case log.InfoLevel:
		return "INFO"
	case log.WarnLevel:
		return "WARN"
	}
	return "ERROR"
}

// threadOf is who says so, or else the name of the thread that logs: a vCPU's has one of its own. The others are goroutines, which move
// between threads without names.
func threadOf(e *log.Entry) string {
	if name, ok := e.Data[ThreadField].(string); ok {
		return name
	}
	if name := currentThread(); strings.HasPrefix(name, "fc_") {
		return name
	}
	return "main"
}

// modulePath is the package that a line comes from, counted from pkg/ or cmd/: "vmm/virtio/mmio".
func modulePath(f *runtime.Frame) string {
	if f == nil {
		return ""
	}
	return strings.TrimPrefix(strings.TrimPrefix(packageOf(f), "pkg/"), "cmd/")
}

// packageOf is the package's path below this module, or whole if it is another module's. A program's main package has no path in the
// function's name, but one in the file's.
func packageOf(f *runtime.Frame) string {
	const module = "containerd-shim-fc-v2/"
	dir, name := path.Split(f.Function)
	name, _, _ = strings.Cut(name, ".")
	p := dir + name
	if p == "main" {
		p = path.Dir(f.File)
		if i := strings.LastIndex(p, "/cmd/"); i >= 0 {
			return p[i+1:]
		}
	}
	if i := strings.Index(p, module); i >= 0 {
		return p[i+len(module):]
	}
	return p
}

// originOf is the source's place, whatever folder it was built in.
func originOf(f *runtime.Frame) string {
	if f == nil {
		return "?:?"
	}
	return path.Join(packageOf(f), path.Base(f.File)) + ":" + strconv.Itoa(f.Line)
}

func within(module, filter string) bool {
	return module != "" && strings.HasPrefix(module, strings.ReplaceAll(filter, "::", "/"))
}

// oneLine keeps a line from being taken for two.
func oneLine(s string) string {
	if !strings.ContainsFunc(s, isControl) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if isControl(r) {
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// value is a field's value, in quotes if a space could end it early.
func value(v any) string {
	s := fmt.Sprint(v)
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return isControl(r) || r == ' ' || r == '"' || r == '=' }) {
		return strconv.Quote(s)
	}
	return s
}
