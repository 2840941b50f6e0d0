package config

import (
	"fmt"
	"strings"
)

// What follows is about the process that runs a machine, and no part of the machine's description.

// Logger says where the VMM's log goes, and what its lines have. What is left out stays as it is, but for the level.
type Logger struct {
	// LogPath is a file or a named pipe; empty: where the log went before, which at first is standard error.
	LogPath string `json:"log_path,omitempty"`
	// Level is one of Off, Error, Warn or Warning, Info, Debug and Trace, in any case; empty is Info.
	Level string `json:"level,omitempty"`
	// ShowLevel and ShowLogOrigin have each line tell its level, and the file and line of the source that it comes from.
	ShowLevel     *bool `json:"show_level,omitempty"`
	ShowLogOrigin *bool `json:"show_log_origin,omitempty"`
	// Module lets lines through only from packages whose path, counted from pkg/ or cmd/, begins so: "vmm/virtio". "::" is as good as "/".
	Module *string `json:"module,omitempty"`
}

// Metrics says where the metrics go.
type Metrics struct {
	// MetricsPath is a file or a named pipe.
	MetricsPath string `json:"metrics_path"`
	// EmitID has each line name the microVM.
	EmitID bool `json:"emit_id,omitempty"`
	// Properties are words of the operator's own that each line repeats.
	Properties map[string]string `json:"properties,omitempty"`
}

// The levels of a log; LevelOff is no log at all.
const (
	LevelOff   = "off"
	LevelError = "error"
	LevelWarn  = "warn"
	LevelInfo  = "info"
	LevelDebug = "debug"
	LevelTrace = "trace"
)

// ParseLevel gives one of the levels above for Firecracker's words, in any case; Info for nothing. field is the value's name, for the error.
func ParseLevel(field, level string) (string, error) {
	switch l := strings.ToLower(level); l {
	case "":
		return LevelInfo, nil
	case LevelOff, LevelError, LevelWarn, LevelInfo, LevelDebug, LevelTrace:
		return l, nil
	case "warning":
		return LevelWarn, nil
	}
	return "", BadString(field, level, "Off, Error, Warn, Info, Debug or Trace")
}

// Validate checks the level and the path's form.
func (l *Logger) Validate() error {
	if _, err := ParseLevel("level", l.Level); err != nil {
		return err
	}
	if l.LogPath == "" {
		return nil
	}
	return checkPath("log_path", l.LogPath, maxPath)
}

// Limits of what an operator can have each line of metrics repeat.
const (
	MaxProperties    = 64
	MaxPropertyBytes = 1024 // of a key and its value together
)

// Validate checks the path's form, and how much is to be repeated.
func (m *Metrics) Validate() error {
	if err := checkPath("metrics_path", m.MetricsPath, maxPath); err != nil {
		return err
	}
	if n := len(m.Properties); n > MaxProperties {
		return bad("properties", fmt.Sprintf("%d pairs", n), fmt.Sprintf("at most %d", MaxProperties))
	}
	for k, v := range m.Properties {
		if n := len(k) + len(v); n > MaxPropertyBytes {
			return BadString("properties", k, fmt.Sprintf("keys that have at most %d bytes with their values, not %d", MaxPropertyBytes, n))
		}
	}
	return nil
}
