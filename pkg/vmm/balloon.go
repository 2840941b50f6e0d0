package vmm

import (
	"context"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/balloon"
)

// balloon gives the balloon of a running or paused machine, for op. Its methods wait for nobody, and may be called even while the
// machine ends.
func (m *Machine) balloon(op string) (*balloon.Device, error) {
	d, b := find(m, func(*balloon.Device) bool { return true })
	if d == nil {
		return nil, config.ErrNoBalloon
	}
	return b, m.canUpdate(op)
}

// UpdateBalloon asks the guest for another balloon, and does not wait for it. It is refused while the guest has no driver at work.
func (m *Machine) UpdateBalloon(_ context.Context, u config.BalloonUpdate) error {
	b, err := m.balloon("update of the balloon")
	if err != nil {
		return err
	}
	return b.Resize(u.AmountMiB)
}

// UpdateBalloonStatistics changes how often the guest is asked for statistics.
func (m *Machine) UpdateBalloonStatistics(_ context.Context, u config.BalloonStatisticsUpdate) error {
	b, err := m.balloon("update of the balloon's statistics")
	if err != nil {
		return err
	}
	return b.SetStatisticsInterval(u.StatsPollingIntervalS)
}

// BalloonStatistics gives what the guest has said last.
func (m *Machine) BalloonStatistics() (config.BalloonStatistics, error) {
	b, err := m.balloon("balloon's statistics")
	if err != nil {
		return config.BalloonStatistics{}, err
	}
	return b.Statistics()
}

// StartBalloonHinting asks the guest for its free pages, once.
func (m *Machine) StartBalloonHinting(_ context.Context, c config.BalloonHintingStart) error {
	b, err := m.balloon("start of free page hinting")
	if err != nil {
		return err
	}
	return b.StartHinting(c)
}

// StopBalloonHinting gives the guest the pages back that it has told of.
func (m *Machine) StopBalloonHinting(context.Context) error {
	b, err := m.balloon("end of free page hinting")
	if err != nil {
		return err
	}
	return b.StopHinting()
}

// BalloonHinting says how far free page hinting is.
func (m *Machine) BalloonHinting() (config.BalloonHinting, error) {
	b, err := m.balloon("state of free page hinting")
	if err != nil {
		return config.BalloonHinting{}, err
	}
	return b.Hinting()
}
