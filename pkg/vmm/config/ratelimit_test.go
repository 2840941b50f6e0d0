package config

import (
	"reflect"
	"testing"
)

// An update changes the buckets that it has, and shares nothing with what it was made of.
func TestUpdates(t *testing.T) {
	a, b := TokenBucket{Size: 1, RefillTime: 1}, TokenBucket{Size: 2, RefillTime: 2, OneTimeBurst: 2}
	tests := []struct {
		name              string
		old, update, want *RateLimiter
	}{
		{"nothing of nothing", nil, nil, nil},
		{"null", &RateLimiter{Bandwidth: &a}, nil, &RateLimiter{Bandwidth: &a}},
		{"empty", &RateLimiter{Bandwidth: &a}, &RateLimiter{}, &RateLimiter{Bandwidth: &a}},
		{"the first", nil, &RateLimiter{Ops: &b}, &RateLimiter{Ops: &b}},
		{"the other bucket", &RateLimiter{Bandwidth: &a}, &RateLimiter{Ops: &b}, &RateLimiter{Bandwidth: &a, Ops: &b}},
		{"the same bucket", &RateLimiter{Bandwidth: &a, Ops: &a}, &RateLimiter{Bandwidth: &b}, &RateLimiter{Bandwidth: &b, Ops: &a}},
		{"off", &RateLimiter{Ops: &a}, &RateLimiter{Ops: &TokenBucket{}}, &RateLimiter{Ops: &TokenBucket{}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Drive{DriveID: "a", PathOnHost: "old", RateLimiter: tt.old}
			(&DriveUpdate{DriveID: "a", RateLimiter: tt.update}).Apply(&d)
			if want := (Drive{DriveID: "a", PathOnHost: "old", RateLimiter: tt.want}); !reflect.DeepEqual(d, want) {
				t.Errorf("got %+v, want %+v", d, want)
			}
			if d.RateLimiter != nil && (d.RateLimiter == tt.old || d.RateLimiter == tt.update) {
				t.Error("shares its limiter")
			}
			n := NetworkInterface{RxRateLimiter: tt.old}
			(&NetworkInterfaceUpdate{RxRateLimiter: tt.update, TxRateLimiter: tt.update}).Apply(&n)
			if !reflect.DeepEqual(n.RxRateLimiter, tt.want) || !reflect.DeepEqual(n.TxRateLimiter, tt.update) {
				t.Errorf("got %+v", n)
			}
		})
	}
	d := Drive{PathOnHost: "old"}
	if (&DriveUpdate{PathOnHost: "new"}).Apply(&d); d.PathOnHost != "new" {
		t.Errorf("path %q", d.PathOnHost)
	}
}
