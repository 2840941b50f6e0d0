package bench

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// streamed is how much goes through a stream, in bytes.
const streamed = 32 << 20

// BenchmarkStdout is `ctr task exec … cat` of a file.
func BenchmarkStdout(b *testing.B) {
	peers(b, func(b *testing.B, c *harness.Containerd) {
		id := runs(b, c, "sh", "-c", fmt.Sprintf("yes containerd-shim-fc-v2 | head -c %d >/tmp/data; exec sleep 1000000", streamed))
		await(b, c, id, fmt.Sprintf("[ $(stat -c %%s /tmp/data) = %d ]", streamed))
		want := sha256.Sum256([]byte(strings.Repeat("containerd-shim-fc-v2\n", streamed/22+1)[:streamed]))
		rounds(b, func() metrics {
			r := c.Ctr(b, "task", "exec", "--exec-id", c.ID(b), id, "cat", "/tmp/data")
			if r.Status != 0 || sha256.Sum256([]byte(r.Stdout)) != want {
				b.Fatalf("cat: status %d, %d bytes of %d: %s", r.Status, len(r.Stdout), streamed, r.Stderr)
			}
			return metrics{"MiB/s": perSecond(streamed>>20, r.Took)}
		})
	})
}

// BenchmarkStdin is `ctr task exec … wc -c` of its input.
func BenchmarkStdin(b *testing.B) {
	peers(b, func(b *testing.B, c *harness.Containerd) {
		id := runs(b, c, "sleep", "1000000")
		data := bytes.Repeat([]byte("x"), streamed)
		rounds(b, func() metrics {
			r := c.CtrIn(b, struct{ io.Reader }{bytes.NewReader(data)}, "task", "exec", "--exec-id", c.ID(b), id, "wc", "-c")
			if r.Status != 0 || strings.TrimSpace(r.Stdout) != fmt.Sprint(streamed) {
				b.Fatal(r)
			}
			return metrics{"MiB/s": perSecond(streamed>>20, r.Took)}
		})
	})
}

// runs starts a container, which ends with the benchmark, and returns its id.
func runs(b *testing.B, c *harness.Containerd, args ...string) string {
	id := c.ID(b)
	c.Must(b, c.RunArgs(b, harness.Run{ID: id, Keep: true, Flags: []string{"-d"}, Args: args})...)
	b.Cleanup(func() {
		c.Ctr(b, "task", "rm", "--force", id)
		c.Must(b, "container", "rm", id)
	})
	return id
}

// await runs a shell's condition in a container until it is true.
func await(b *testing.B, c *harness.Containerd, id, condition string) {
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); time.Sleep(100 * time.Millisecond) {
		if c.Ctr(b, "task", "exec", "--exec-id", c.ID(b), id, "sh", "-c", condition).Status == 0 {
			return
		}
	}
	b.Fatalf("%s was not true within a minute", condition)
}

func perSecond(n float64, d time.Duration) float64 { return n / d.Seconds() }
