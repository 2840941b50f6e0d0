package vmm

import (
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/mmds"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/mmds/tcpip"
	virtionet "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/net"
)

// metadataPort is the one of HTTP.
const metadataPort = 80

// newMetadata makes the metadata service that the description asks for, if it does.
func newMetadata(cfg *config.VM, opts Options) *mmds.Service {
	if cfg.MMDS == nil {
		return nil
	}
	s := &mmds.Service{
		Store:      opts.Metadata,
		Tokens:     mmds.NewAuthority(opts.ID),
		V2:         cfg.MMDS.Version == config.MMDSV2,
		IMDSCompat: cfg.MMDS.IMDSCompat,
	}
	if s.Store == nil {
		s.Store = mmds.NewStore(mmds.DefaultLimit)
	}
	return s
}

// answerMetadata has a network interface of the service's answer for it. The data and the tokens are the same on all of them.
func (m *Machine) answerMetadata(cfg *config.VM, dev *virtionet.Device) {
	if m.metadata != nil && cfg.MMDS.Serves(dev.ID()) {
		counts := &m.metadata.Counts
		dev.Answer(tcpip.New(cfg.MMDS.Address(), metadataPort, m.metadata, counts), counts)
	}
}
