package bench

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
)

// BenchmarkSocket is from fc-vmm's exec until its API has answered the first request. As with the shim, the socket is there before
// the process is, so the request waits for nothing but the answer.
func BenchmarkSocket(b *testing.B) {
	bin := harness.Need(b).Bin
	b.Run("fc", func(b *testing.B) {
		rounds(b, func() metrics {
			path := filepath.Join(b.TempDir(), "api.sock")
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			socket, err := l.File()
			if err != nil {
				b.Fatal(err)
			}
			defer socket.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, filepath.Join(bin, "fc-vmm"), "--api-fd", "3")
			cmd.ExtraFiles, cmd.Stderr = []*os.File{socket}, os.Stderr
			cmd.Env = append(os.Environ(), "GODEBUG=disablethp=1", "GOGC=25") // as the shim starts it
			began := time.Now()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			defer func() {
				cancel()
				_ = cmd.Wait()
			}()
			if _, err := api.NewClient(path).Info(ctx); err != nil {
				b.Fatal(err)
			}
			return metrics{"ms": ms(time.Since(began))}
		})
	})
}
