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
	data, err := json.Marshal(exitRecord{s.pid, s.exitStatus, s.exitedAt})
	if err != nil {
		return err
	}
	name := filepath.Join(bundle, exitName)
	if err := os.WriteFile(name+".tmp", data, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

func readExit(bundle string) (exitRecord, error) {
	var r exitRecord
	data, err := os.ReadFile(filepath.Join(bundle, exitName))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: %w", exitName, err)
	}
	return r, nil
}
