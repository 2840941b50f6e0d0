package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// microPackages are the packages whose Go benchmarks count: the data paths.
func microPackages() []string {
	return []string{
		"./pkg/vmm", "./pkg/vmm/virtio/queue", "./pkg/vmm/virtio/block", "./pkg/vmm/virtio/net", "./pkg/vmm/virtio/vsock", "./pkg/vmm/virtio/fs",
	}
}

// microBenchmarks runs Go benchmarks that need no machine. Their times are of this host's wall clock, so no limit is ever on them;
// their allocations are exact.
func microBenchmarks(ctx context.Context, o options) ([]Figure, error) {
	var figures []Figure
	for _, pkg := range microPackages() {
		cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", ".", "-benchmem", "-benchtime", "2000x", pkg)
		cmd.Dir = o.root
		out, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("go benchmarks of %s: %w\n%s", pkg, err, tail(out))
		}
		f, err := parseFigures(bytes.NewReader(out), path.Base(pkg)+".")
		if err != nil {
			return nil, err
		}
		for i := range f {
			f[i].Name += "/go"
		}
		say("go benchmarks of %s: %d figures", strings.TrimPrefix(pkg, "./"), len(f))
		figures = append(figures, f...)
	}
	return figures, nil
}

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
