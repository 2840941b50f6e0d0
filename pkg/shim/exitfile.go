package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// exitName is a file in the bundle with init's exit, for a `delete` that comes after this process's death.
const exitName = "fc-exit.json"

type exitRecord struct {
	Pid        uint32    `json:"pid"`
	ExitStatus uint32    `json:"exit_status"`
	ExitedAt   time.Time `json:"exited_at"`
}

func writeExit(bundle string, s processState) error {
	return writeRecord(bundle, exitName, exitRecord{s.pid, s.exitStatus, s.exitedAt})
}

func readExit(bundle string) (r exitRecord, err error) {
	err = readRecord(bundle, exitName, &r)
	return r, err
}

// writeRecord writes a file of the bundle at one stroke: a death leaves the old one or the new one.
func writeRecord(bundle, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	path := filepath.Join(bundle, name)
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func readRecord(bundle, name string, v any) error {
	data, err := os.ReadFile(filepath.Join(bundle, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
