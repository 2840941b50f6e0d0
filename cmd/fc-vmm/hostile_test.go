package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest/hostile"
)

// How long the hostile guest is at it, in seconds, and from which seed; one round alone if that is given. `make stress` sets these.
const (
	envHostileSeconds = "FC_HOSTILE_SECONDS"
	envHostileSeed    = "FC_HOSTILE_SEED"
	envHostileRound   = "FC_HOSTILE_ROUND"
)

const (
	hostileSeconds = 15
	// stormsARound is how many storms a device has to stand before everybody's health is looked at.
	stormsARound = 2
	// hostilePatience bounds each wait for the guest or a device: it may be emulated, on a busy machine.
	hostilePatience = time.Minute
)

// A guest whose drivers are hostile has nothing from it: fc-vmm lives, ends when told, does not grow, touches nothing but what is
// the guest's; and other devices, and after a reset the same one, go on working.
func TestHostileGuest(t *testing.T) {
	vmmtest.NeedKVM(t)
	seconds, seed := hostileNumber(t, envHostileSeconds, hostileSeconds), hostileNumber(t, envHostileSeed, 1)
	if seed == 0 { // make stress
		seed = 1 + rand.Uint64N(1<<32)
	}
	round, only := uint64(0), os.Getenv(envHostileRound) != ""
	if only {
		round = hostileNumber(t, envHostileRound, 0)
	}
	h := newHostileHost(t)
	pass := uint64(len(h.targets)) + 1 // all devices, and the ports
	began, first, deaths := time.Now(), round, 0
	t.Cleanup(func() {
		t.Logf("%s=%d, rounds %d to %d, %d storms, the guest shot itself %d times, in %s, of which storms %s",
			envHostileSeed, seed, first, round, (round-first)*stormsARound, deaths, time.Since(began).Round(time.Second), h.stormy.Round(time.Second))
	})
	prey := h.boot(t)
	// What is left behind shows in a second pass.
	for ; round-first < 2*pass || time.Since(began) < time.Duration(seconds)*time.Second; round++ {
		err := h.round(prey, seed, round)
		if err != nil && (!errors.Is(err, hostile.ErrLost) || !prey.suicide(t)) {
			prey.dump()
			t.Fatalf("%s=%d %s=%d: %v\n%s", envHostileSeed, seed, envHostileRound, round, err, prey.out)
		}
		if only {
			break
		}
		if err != nil {
			// That is the guest's right, but it finds nothing that way.
			if deaths++; deaths > 3 && uint64(deaths)*5 > round-first {
				t.Fatalf("the guest has shot itself %d times in %d rounds: %v", deaths, round-first, err)
			}
			prey, h.files.before = h.boot(t), weight{}
			continue
		}
		if prey.rounds++; prey.rounds == int(pass) {
			prey.calm(t, func() { prey.before, h.files.before = prey.weigh(t), h.files.weigh(t) })
		}
	}
	if prey.rounds > int(pass) {
		prey.calm(t, func() {
			prey.compare(t)
			h.files.compare(t)
		})
	}
	prey.stop(t)
	h.files.stop(t)
	h.unharmed(t, prey)
}

func hostileNumber(t *testing.T, env string, usual uint64) uint64 {
	t.Helper()
	v := os.Getenv(env)
	if v == "" {
		return usual
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s is %q: want a number", env, v)
	}
	return n
}

// round has one device stand some storms, then asks another one, the VMM, and after a reset the same one whether they work.
func (h *hostileHost) round(p *prey, seed, round uint64) error {
	h.rounds++
	r := rand.New(rand.NewPCG(seed, round))
	n := int(round % uint64(len(h.targets)+1))
	if err := h.storms(p, r, n); err != nil {
		return err
	}
	if err := h.witness(p); err != nil {
		return fmt.Errorf("after storms: %w", err)
	}
	if n == len(h.targets) {
		return nil
	}
	if err := h.healthy(p, n); err != nil {
		return fmt.Errorf("%s after storms: %w", h.targets[n].name, err)
	}
	return nil
}

// window is where the machine has put a target.
func (h *hostileHost) window(n int) int {
	if n >= h.witnessAt {
		n++
	}
	return n
}

// storms are those of a round, on a device or, behind the last one, on the ports.
func (h *hostileHost) storms(p *prey, r *rand.Rand, n int) error {
	defer func(began time.Time) { h.stormy += time.Since(began) }(time.Now())
	for range stormsARound {
		if n == len(h.targets) {
			if err := p.guest.StormPorts(r); err != nil {
				return fmt.Errorf("ports: %w", err)
			}
			continue
		}
		dev := &p.devices[h.window(n)]
		pause, paused := r.IntN(10) == 0, error(nil)
		err := p.guest.Storm(r, dev, hostile.PayloadFor(dev.Type), func() {
			if pause {
				paused = errors.Join(p.api.Pause(context.Background()), p.api.Resume(context.Background()))
			}
		})
		if err == nil {
			err = paused
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.targets[n].name, err)
		}
	}
	return nil
}

// witness asks the VMM, and a device that nobody has stormed.
func (h *hostileHost) witness(p *prey) error {
	if _, err := p.api.State(context.Background()); err != nil {
		return fmt.Errorf("the API: %w: %w", hostile.ErrLost, err)
	}
	return h.healthy(p, len(h.targets))
}

// healthy has an honest driver use a device, as often as the guest's own storms on others may disturb that.
func (h *hostileHost) healthy(p *prey, n int) error {
	target, dev := h.witnessTarget, &p.devices[h.witnessAt]
	if n < len(h.targets) {
		target, dev = h.targets[n], &p.devices[h.window(n)]
	}
	var err error
	for range 3 {
		var d *hostile.Driver
		if d, err = p.guest.Drive(dev, target.queues); err == nil {
			err = target.works(h, p, d)
		}
		if err == nil {
			return p.guest.Reset(dev) // traffic of the host's must not find its rings
		}
		if errors.Is(err, hostile.ErrLost) {
			return err
		}
	}
	return err
}
