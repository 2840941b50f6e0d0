package main

import (
	"os"
	"path/filepath"
)

// sizes are those of the files that `make install` copies, and of runc's.
func sizes(o options) ([]Figure, error) {
	var figures []Figure
	for _, f := range []struct{ name, file string }{
		{"Size/shim/fc", "containerd-shim-fc-v2"}, {"Size/shim/runc", "tools/containerd-shim-runc-v2"},
		{"Size/vmm/fc", "fc-vmm"}, {"Size/kernel/fc", "vmlinux"}, {"Size/image/fc", "guest.img"},
	} {
		st, err := os.Stat(filepath.Join(o.bin, f.file))
		if err != nil {
			return nil, err
		}
		figures = append(figures, Figure{Name: f.name, Unit: "KiB", Value: float64(st.Size()) / 1024})
	}
	return figures, nil
}
