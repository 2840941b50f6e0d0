package vmm

import (
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/balloon"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/block"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/fs"
	virtionet "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/net"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/rng"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vsock"
)

// Metrics lists what the machine's parts count. The counters go on as long as the machine runs, and may be read after its end.
func (m *Machine) Metrics() *metrics.Machine {
	all := &metrics.Machine{UART: m.serial.Metrics(), I8042: m.i8042.Metrics()}
	for _, v := range m.vcpus {
		all.VCPUs = append(all.VCPUs, &v.counts)
	}
	if m.metadata != nil {
		all.MMDS = &m.metadata.Counts
	}
	for _, d := range m.devices {
		all.Interrupts = append(all.Interrupts, &d.transport.Counts)
		switch dev := d.dev.(type) {
		case *block.Device:
			all.Blocks = append(all.Blocks, metrics.Named[metrics.Block]{ID: dev.ID(), Counts: dev.Metrics()})
		case *virtionet.Device:
			all.Nets = append(all.Nets, metrics.Named[metrics.Net]{ID: dev.ID(), Counts: dev.Metrics()})
		case *fs.Device:
			all.Filesystems = append(all.Filesystems, metrics.Named[metrics.Filesystem]{ID: dev.ID(), Counts: dev.Metrics()})
		case *vhostuser.Drive:
			all.VhostUserBlocks = append(all.VhostUserBlocks, metrics.Named[metrics.VhostUser]{ID: dev.ID(), Counts: dev.Metrics()})
		case *vhostuser.Filesystem:
			all.VhostUserFilesystems = append(all.VhostUserFilesystems, metrics.Named[metrics.VhostUser]{ID: dev.ID(), Counts: dev.Metrics()})
		case *vsock.Device:
			all.Vsock = dev.Metrics()
		case *rng.Device:
			all.Entropy = dev.Metrics()
		case *balloon.Device:
			all.Balloon = dev.Metrics()
		}
	}
	return all
}

// countActivations has d's transport count the drivers that it could not serve.
func (d *device) countActivations() {
	switch dev := d.dev.(type) {
	case *block.Device:
		d.transport.ActivateFails = &dev.Metrics().ActivateFails
	case *virtionet.Device:
		d.transport.ActivateFails = &dev.Metrics().ActivateFails
	case *fs.Device:
		d.transport.ActivateFails = &dev.Metrics().ActivateFails
	case *vhostuser.Drive:
		d.transport.ActivateFails = &dev.Metrics().ActivateFails
	case *vhostuser.Filesystem:
		d.transport.ActivateFails = &dev.Metrics().ActivateFails
	case *vsock.Device:
		d.transport.ActivateFails = &dev.Metrics().ActivateFails
	case *rng.Device:
		d.transport.ActivateFails = &dev.Metrics().ActivateFails
	case *balloon.Device:
		d.transport.ActivateFails = &dev.Metrics().ActivateFails
	}
}

// measureLatency has everything timed that can be. It comes before the guest runs.
func (m *Machine) measureLatency() {
	for _, v := range m.vcpus {
		v.timed = true
	}
	for _, d := range m.devices {
		if dev, ok := d.dev.(interface{ MeasureLatency() }); ok {
			dev.MeasureLatency()
		}
	}
}

// countExit counts an exit, which reads or writes, and starts to time it if somebody wants to know.
func (v *vcpu) countExit(in *metrics.Counter, inTime *metrics.Latency, out *metrics.Counter, outTime *metrics.Latency, write bool) metrics.Timer {
	if write {
		out.Inc()
		return outTime.Start(v.timed)
	}
	in.Inc()
	return inTime.Start(v.timed)
}
