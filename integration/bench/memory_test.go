package bench

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func mountTmpfs(dir string) error {
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	return nil
}
