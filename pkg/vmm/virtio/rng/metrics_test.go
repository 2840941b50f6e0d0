package rng

import (
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

func TestMetrics(t *testing.T) {
	d, err := New(config.Entropy{})
	if err != nil {
		t.Fatal(err)
	}
	m := vt.Start(t, d, 1<<20)
	for _, n := range []uint32{64, 100, MaxRequest + 5} {
		m.Do(m.Rings[0], nil, []vt.Span{m.Arena.Alloc(n)})
	}
	c := d.Metrics()
	if c.Events.Count() != 3 || c.Bytes.Count() != 164+MaxRequest || c.HostRNGFails.Count() != 0 {
		t.Errorf("%d requests, %d bytes, %d failures", c.Events.Count(), c.Bytes.Count(), c.HostRNGFails.Count())
	}
}
