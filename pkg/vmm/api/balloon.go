package api

import (
	"context"
	"net/http"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// Ballooner is what the API needs of a machine's balloon. The questions do not wait.
type Ballooner interface {
	// UpdateBalloon asks the guest for another size.
	UpdateBalloon(ctx context.Context, u config.BalloonUpdate) error
	// UpdateBalloonStatistics changes the interval of statistics.
	UpdateBalloonStatistics(ctx context.Context, u config.BalloonStatisticsUpdate) error
	// BalloonStatistics are the latest.
	BalloonStatistics() (config.BalloonStatistics, error)
	// StartBalloonHinting and StopBalloonHinting begin and end a run of free page hinting.
	StartBalloonHinting(ctx context.Context, c config.BalloonHintingStart) error
	StopBalloonHinting(ctx context.Context) error
	// BalloonHinting is how far that is.
	BalloonHinting() (config.BalloonHinting, error)
}

// routeBalloon is route for the paths below /balloon.
func routeBalloon(method, rest string) handler {
	switch method + " " + rest {
	case "GET statistics":
		return (*Server).getBalloonStatistics
	case "PATCH statistics":
		return (*Server).patchBalloonStatistics
	case "GET hinting/status":
		return (*Server).getBalloonHinting
	case "PATCH hinting/start":
		return (*Server).startBalloonHinting
	case "PATCH hinting/stop":
		return (*Server).stopBalloonHinting
	}
	return nil
}

// mayBeEmpty lists the paths of commands whose body says nothing that is needed.
func mayBeEmpty(path string) bool {
	return slices.Contains([]string{"/balloon/hinting/start", "/balloon/hinting/stop"}, path)
}

func (d document) balloon(m member) (*config.Balloon, error) {
	var b config.Balloon
	if err := d.fill(m.raw, m.at, &b, schema{required: []string{"amount_mib", "deflate_on_oom"}}); err != nil {
		return nil, err
	}
	return &b, b.Validate()
}

func (d document) balloonUpdate(m member) (config.BalloonUpdate, error) {
	var u config.BalloonUpdate
	if err := d.fill(m.raw, m.at, &u, schema{required: []string{"amount_mib"}}); err != nil {
		return u, err
	}
	return u, u.Validate()
}

func (d document) balloonStatisticsUpdate(m member) (config.BalloonStatisticsUpdate, error) {
	var u config.BalloonStatisticsUpdate
	if err := d.fill(m.raw, m.at, &u, schema{required: []string{"stats_polling_interval_s"}}); err != nil {
		return u, err
	}
	return u, u.Validate()
}

func (d document) balloonHintingStart(m member) (config.BalloonHintingStart, error) {
	c := config.BalloonHintingStart{AcknowledgeOnStop: true}
	return c, d.fill(m.raw, m.at, &c, schema{})
}

func setBalloon(vm *config.VM, b *config.Balloon) error {
	vm.Balloon = b
	return nil
}

func (s *Server) getBalloon(context.Context, request) (any, error) {
	vm, _ := s.control.snapshot()
	if vm.Balloon == nil {
		return nil, config.ErrNoBalloon
	}
	return vm.Balloon, nil
}

func (s *Server) putBalloon(ctx context.Context, r request) (any, error) {
	b, err := decode(r, document.balloon)
	if err != nil {
		return nil, err
	}
	return set(ctx, s.control, b, setBalloon)
}

func (s *Server) patchBalloon(ctx context.Context, r request) (any, error) {
	u, err := decode(r, document.balloonUpdate)
	if err != nil {
		return nil, err
	}
	return nil, s.updateBalloon(ctx, func(b *config.Balloon) { b.AmountMiB = u.AmountMiB },
		func(m Machine, ctx context.Context) error { return m.UpdateBalloon(ctx, u) })
}

func (s *Server) patchBalloonStatistics(ctx context.Context, r request) (any, error) {
	u, err := decode(r, document.balloonStatisticsUpdate)
	if err != nil {
		return nil, err
	}
	return nil, s.updateBalloon(ctx, func(b *config.Balloon) { b.StatsPollingIntervalS = u.StatsPollingIntervalS },
		func(m Machine, ctx context.Context) error { return m.UpdateBalloonStatistics(ctx, u) })
}

// updateBalloon makes a change of the running machine's balloon, if it has one.
func (s *Server) updateBalloon(ctx context.Context, change func(*config.Balloon), f func(Machine, context.Context) error) error {
	return s.control.update(ctx, func(_ context.Context, vm *config.VM) error {
		if vm.Balloon == nil {
			return config.ErrNoBalloon
		}
		change(vm.Balloon)
		return nil
	}, f)
}

func (s *Server) getBalloonStatistics(context.Context, request) (any, error) {
	m, err := s.started()
	if err != nil {
		return nil, err
	}
	return answer(m.BalloonStatistics())
}

func (s *Server) getBalloonHinting(context.Context, request) (any, error) {
	m, err := s.started()
	if err != nil {
		return nil, err
	}
	return answer(m.BalloonHinting())
}

func (s *Server) startBalloonHinting(ctx context.Context, r request) (any, error) {
	if len(r.body) == 0 {
		r.body = []byte("{}")
	}
	c, err := decode(r, document.balloonHintingStart)
	if err != nil {
		return nil, err
	}
	return nil, s.control.withMachine(ctx, func(m Machine, ctx context.Context) error { return m.StartBalloonHinting(ctx, c) })
}

// stopBalloonHinting has no use for a body.
func (s *Server) stopBalloonHinting(ctx context.Context, _ request) (any, error) {
	return nil, s.control.withMachine(ctx, Machine.StopBalloonHinting)
}

// started gives the machine to a question, which does not wait for the requests that change it.
func (s *Server) started() (Machine, error) {
	_, m := s.control.snapshot()
	if m == nil {
		return nil, errdefs.ErrFailedPrecondition.WithMessage(beforeStart)
	}
	return m, nil
}

// answer keeps the document of a failed question from being one.
func answer[T any](v T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

// PutBalloon gives the VM a balloon.
func (c *Client) PutBalloon(ctx context.Context, b config.Balloon) error {
	return c.call(ctx, http.MethodPut, "/balloon", b, nil)
}
