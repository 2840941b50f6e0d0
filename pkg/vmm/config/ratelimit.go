package config

import "fmt"

// MaxRefillTime bounds TokenBucket.RefillTime, in ms: 292 years, what 63 bits of nanoseconds hold.
const MaxRefillTime = (1<<63 - 1) / 1_000_000

// RateLimiter bounds what a device moves, by bytes and by requests. A bucket that is left out is no limit; in an update, it
// stays as it is.
type RateLimiter struct {
	// Bandwidth has a token for each byte.
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
	// Ops has a token for each request or frame.
	Ops *TokenBucket `json:"ops,omitempty"`
}

// TokenBucket is one limit: Size tokens each RefillTime, and the burst once. It is no limit if Size or RefillTime is 0.
type TokenBucket struct {
	// Size is how many tokens the bucket holds, and starts with.
	Size uint64 `json:"size"`
	// OneTimeBurst is how many more there are at the start; they are spent first, and never again.
	OneTimeBurst uint64 `json:"one_time_burst,omitempty"`
	// RefillTime is how long an empty bucket takes to be full, in ms: up to MaxRefillTime.
	RefillTime uint64 `json:"refill_time"`
}

// DriveUpdate changes a drive of a running machine.
type DriveUpdate struct {
	DriveID string `json:"drive_id"`
	// PathOnHost is the new backing file, or the old one, whose size is then read again; empty: no change.
	PathOnHost string `json:"path_on_host,omitempty"`
	// RateLimiter has the buckets that change.
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// NetworkInterfaceUpdate changes a network interface of a running machine.
type NetworkInterfaceUpdate struct {
	IfaceID string `json:"iface_id"`
	// RxRateLimiter and TxRateLimiter have the buckets that change.
	RxRateLimiter *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TxRateLimiter *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// Apply makes the change in d's description.
func (u *DriveUpdate) Apply(d *Drive) {
	if u.PathOnHost != "" {
		d.PathOnHost = u.PathOnHost
	}
	d.RateLimiter = d.RateLimiter.updated(u.RateLimiter)
}

// Apply makes the change in n's description.
func (u *NetworkInterfaceUpdate) Apply(n *NetworkInterface) {
	n.RxRateLimiter = n.RxRateLimiter.updated(u.RxRateLimiter)
	n.TxRateLimiter = n.TxRateLimiter.updated(u.TxRateLimiter)
}

// updated is r with the buckets of u; both may be nil. It shares nothing with either.
func (r *RateLimiter) updated(u *RateLimiter) *RateLimiter {
	switch {
	case u == nil:
		return r.clone()
	case r == nil:
		return u.clone()
	}
	c := r.clone()
	if u.Bandwidth != nil {
		c.Bandwidth = clone(u.Bandwidth)
	}
	if u.Ops != nil {
		c.Ops = clone(u.Ops)
	}
	return c
}

func (r *RateLimiter) clone() *RateLimiter {
	c := clone(r)
	if c != nil {
		c.Bandwidth, c.Ops = clone(r.Bandwidth), clone(r.Ops)
	}
	return c
}

// validate checks a limiter, which may be nil, whose field is called field.
func (r *RateLimiter) validate(field string) error {
	if r == nil {
		return nil
	}
	if err := r.Bandwidth.validate(field + "/bandwidth"); err != nil {
		return err
	}
	return r.Ops.validate(field + "/ops")
}

func (b *TokenBucket) validate(field string) error {
	if b != nil && b.RefillTime > MaxRefillTime {
		return bad(field+"/refill_time", b.RefillTime, fmt.Sprintf("0 to %d ms", uint64(MaxRefillTime)))
	}
	return nil
}

// Validate checks what can be checked without the drive.
func (u *DriveUpdate) Validate() error {
	if err := checkID("drive_id", u.DriveID); err != nil {
		return err
	}
	at := "drives/" + u.DriveID + "/"
	if u.PathOnHost != "" {
		if err := checkPath(at+"path_on_host", u.PathOnHost, maxPath); err != nil {
			return err
		}
	}
	return u.RateLimiter.validate(at + "rate_limiter")
}

// Validate checks what can be checked without the interface.
func (u *NetworkInterfaceUpdate) Validate() error {
	if err := checkID("iface_id", u.IfaceID); err != nil {
		return err
	}
	at := "network-interfaces/" + u.IfaceID + "/"
	if err := u.RxRateLimiter.validate(at + "rx_rate_limiter"); err != nil {
		return err
	}
	return u.TxRateLimiter.validate(at + "tx_rate_limiter")
}

// Validate checks the limiter.
func (e *Entropy) Validate() error { return e.RateLimiter.validate("entropy/rate_limiter") }
