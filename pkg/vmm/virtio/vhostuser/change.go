package vhostuser

import (
	"context"
	"errors"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// Refresh asks the back-end for its configuration space, up to answerTimeout or the end of ctx. The caller runs apply, which makes it the
// driver's, where the driver does not read half of it, and tells the driver (mmio.Transport.Reconfigure). It may be called from any
// goroutine; a device whose space is the VMM's has nothing to refresh.
func (d *Device) Refresh(ctx context.Context) (apply func(), err error) {
	if d.cfg.Space != nil {
		return func() {}, nil
	}
	ctx, cancel := within(ctx, answerTimeout)
	defer cancel()
	begin := time.Now()
	space, err := d.link.Load().fetchSpace(ctx, d.cfg.SpaceLen)
	if err != nil {
		d.counts.CfgFails.Inc()
		return nil, d.failed(err)
	}
	d.counts.ConfigChangeTime.Set(micros(begin))
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.space = space
	}, nil
}

// OnConfigChange sets what is done when the back-end says that its configuration space has changed: f refreshes it. It is called from a
// goroutine that has no other work.
func (d *Device) OnConfigChange(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = f
}

// listen takes the back-end's own messages until the channel's end, which is no loss.
func (d *Device) listen(l *link) {
	for {
		h, _, err := readMessage(l.channel)
		switch {
		case errors.Is(err, wire.ErrMalformed):
			l.fail(err)
			return
		case err != nil:
			return
		}
		status := uint64(1) // refused
		if h.Request == wire.BackendConfigChange {
			d.mu.Lock()
			changed := d.changed
			d.mu.Unlock()
			if changed != nil {
				changed()
			}
			status = 0
		}
		if h.Flags&wire.FlagNeedReply == 0 {
			continue
		}
		if _, err := l.channel.Write(wire.Message(h.Request, wire.FlagReply, wire.U64(status))); err != nil {
			return
		}
	}
}
