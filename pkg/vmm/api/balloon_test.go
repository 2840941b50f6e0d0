package api

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// fakeBalloon notes what it is asked for.
type fakeBalloon struct {
	asked      []any
	balloonErr error
}

func (b *fakeBalloon) ask(v any) error {
	b.asked = append(b.asked, v)
	return b.balloonErr
}

func (b *fakeBalloon) UpdateBalloon(_ context.Context, u config.BalloonUpdate) error { return b.ask(u) }

func (b *fakeBalloon) UpdateBalloonStatistics(_ context.Context, u config.BalloonStatisticsUpdate) error {
	return b.ask(u)
}

func (b *fakeBalloon) BalloonStatistics() (config.BalloonStatistics, error) {
	free := uint64(1 << 40)
	return config.BalloonStatistics{TargetPages: 512, TargetMiB: 2, FreeMemory: &free}, b.ask("statistics")
}

func (b *fakeBalloon) StartBalloonHinting(_ context.Context, c config.BalloonHintingStart) error {
	return b.ask(c)
}

func (b *fakeBalloon) StopBalloonHinting(context.Context) error { return b.ask("stop") }

func (b *fakeBalloon) BalloonHinting() (config.BalloonHinting, error) {
	zero := uint32(0)
	return config.BalloonHinting{HostCommand: 1, GuestCommand: &zero}, b.ask("hinting")
}

func TestPutBalloon(t *testing.T) {
	for _, tt := range []struct{ body, fault, want string }{
		{`{"amount_mib": 0, "deflate_on_oom": false}`, "",
			`{"amount_mib":0,"deflate_on_oom":false,"stats_polling_interval_s":0,"free_page_hinting":false,"free_page_reporting":false}`},
		{`{"amount_mib": 128, "deflate_on_oom": true, "stats_polling_interval_s": 65535, "free_page_hinting": true, "free_page_reporting": true}`, "",
			`{"amount_mib":128,"deflate_on_oom":true,"stats_polling_interval_s":65535,"free_page_hinting":true,"free_page_reporting":true}`},
		{`{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": null}`, "",
			`{"amount_mib":1,"deflate_on_oom":true,"stats_polling_interval_s":0,"free_page_hinting":false,"free_page_reporting":false}`},
		{`{"amount_mib": 129, "deflate_on_oom": true}`, "balloon/amount_mib is 129: want 0 to 128 MiB", ""},
		{`{"amount_mib": -1, "deflate_on_oom": true}`, "balloon/amount_mib is -1", ""},
		{`{"amount_mib": 4294967296, "deflate_on_oom": true}`, "balloon/amount_mib is 4294967296", ""},
		{`{"amount_mib": "1", "deflate_on_oom": true}`, `amount_mib is "1": want an integer`, ""},
		{`{"amount_mib": 1.5, "deflate_on_oom": true}`, "amount_mib is 1.5: want an integer", ""},
		{`{"amount_mib": 1, "deflate_on_oom": 1}`, "deflate_on_oom is 1: want true or false", ""},
		{`{"amount_mib": 1}`, "missing field `deflate_on_oom`", ""},
		{`{"deflate_on_oom": true}`, "missing field `amount_mib`", ""},
		{`{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 65536}`, "balloon/stats_polling_interval_s is 65536: want 0 to 65535 seconds", ""},
		{`{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": -1}`, "stats_polling_interval_s is -1", ""},
		{`{"amount_mib": 1, "deflate_on_oom": true, "must_tell_host": true}`, "unknown field `must_tell_host`", ""},
		{``, "Empty PUT request.", ""},
		{`[]`, "want an object", ""},
	} {
		t.Run(tt.body, func(t *testing.T) {
			b := newBench(t)
			if status, answer := b.do("GET", "/balloon", ""); status != 400 || faultOf(t, answer) != "No balloon device found." {
				t.Errorf("before: %d %s", status, answer)
			}
			status, answer := b.do("PUT", "/balloon", tt.body)
			if tt.fault != "" {
				if status != 400 || !strings.Contains(faultOf(t, answer), tt.fault) {
					t.Errorf("%d %s, want 400 with %q", status, answer, tt.fault)
				}
				if status, _ := b.do("GET", "/balloon", ""); status != 400 {
					t.Error("recorded all the same")
				}
				return
			}
			if status != 204 {
				t.Fatalf("%d %s", status, answer)
			}
			if got := b.must(t, "GET", "/balloon", ""); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if got := b.must(t, "GET", "/vm/config", ""); !strings.Contains(got, `"balloon":`+tt.want) {
				t.Errorf("configuration %s", got)
			}
			b.must(t, "PUT", "/balloon", `{"amount_mib": 2, "deflate_on_oom": false}`) // takes the other's place
			b.start(t)
			if status, answer := b.do("PUT", "/balloon", tt.body); status != 400 || faultOf(t, answer) != afterStart {
				t.Errorf("after the start: %d %s", status, answer)
			}
			if got := b.booted[0].Balloon; *got != (config.Balloon{AmountMiB: 2}) {
				t.Errorf("booted with %+v", got)
			}
		})
	}
}

// Memory cannot shrink below the balloon, nor the balloon grow beyond it.
func TestBalloonAndMemory(t *testing.T) {
	b := newBench(t)
	b.must(t, "PUT", "/balloon", `{"amount_mib": 100, "deflate_on_oom": false}`)
	if status, answer := b.do("PATCH", "/machine-config", `{"mem_size_mib": 64}`); status != 400 || !strings.Contains(faultOf(t, answer), "balloon/amount_mib is 100: want 0 to 64 MiB") {
		t.Errorf("%d %s", status, answer)
	}
	b.must(t, "PATCH", "/machine-config", `{"mem_size_mib": 100}`)
	b.start(t)
	if status, answer := b.do("PATCH", "/balloon", `{"amount_mib": 101}`); status != 400 || !strings.Contains(faultOf(t, answer), "balloon/amount_mib is 101: want 0 to 100 MiB") {
		t.Errorf("%d %s", status, answer)
	}
	if len(b.machine.asked) > 0 {
		t.Errorf("the machine was asked for %v", b.machine.asked)
	}
}

// TestBalloonCommands sends what a running machine's balloon takes: before the start, without a balloon, when the machine refuses, and
// when it does not.
func TestBalloonCommands(t *testing.T) {
	const statistics = `{"target_pages":512,"actual_pages":0,"target_mib":2,"actual_mib":0,"free_memory":1099511627776}`
	for _, tt := range []struct {
		method, path, body string
		fault              string // at any time
		asked              any    // of the machine
		answer             string
		config             string // what GET /balloon has afterwards
	}{
		{"PATCH", "/balloon", `{"amount_mib": 128}`, "", config.BalloonUpdate{AmountMiB: 128}, "", `"amount_mib":128`},
		{"PATCH", "/balloon", `{"amount_mib": 0}`, "", config.BalloonUpdate{}, "", `"amount_mib":0`},
		{"PATCH", "/balloon", `{"amount_mib": -1}`, "balloon/amount_mib is -1", nil, "", ""},
		{"PATCH", "/balloon", `{}`, "missing field `amount_mib`", nil, "", ""},
		{"PATCH", "/balloon", `{"amount_mib": 1, "stats_polling_interval_s": 1}`, "unknown field `stats_polling_interval_s`", nil, "", ""},
		{"PATCH", "/balloon", ``, "Empty PATCH request.", nil, "", ""},
		{"PATCH", "/balloon/statistics", `{"stats_polling_interval_s": 7}`, "", config.BalloonStatisticsUpdate{StatsPollingIntervalS: 7}, "", `"stats_polling_interval_s":7`},
		{"PATCH", "/balloon/statistics", `{"stats_polling_interval_s": 65536}`, "balloon/stats_polling_interval_s is 65536", nil, "", ""},
		{"PATCH", "/balloon/statistics", `{}`, "missing field `stats_polling_interval_s`", nil, "", ""},
		{"PATCH", "/balloon/statistics", ``, "Empty PATCH request.", nil, "", ""},
		{"GET", "/balloon/statistics", ``, "", "statistics", statistics, ""},
		{"GET", "/balloon/statistics", `{}`, "GET request cannot have a body.", nil, "", ""},
		{"PATCH", "/balloon/hinting/start", `{"acknowledge_on_stop": false}`, "", config.BalloonHintingStart{}, "", ""},
		{"PATCH", "/balloon/hinting/start", `{"acknowledge_on_stop": true}`, "", config.BalloonHintingStart{AcknowledgeOnStop: true}, "", ""},
		{"PATCH", "/balloon/hinting/start", `{}`, "", config.BalloonHintingStart{AcknowledgeOnStop: true}, "", ""},
		{"PATCH", "/balloon/hinting/start", ``, "", config.BalloonHintingStart{AcknowledgeOnStop: true}, "", ""},
		{"PATCH", "/balloon/hinting/start", `{"acknowledge_on_stop": 1}`, "acknowledge_on_stop is 1", nil, "", ""},
		{"PATCH", "/balloon/hinting/start", `{"acknowledge": true}`, "unknown field `acknowledge`", nil, "", ""},
		{"PATCH", "/balloon/hinting/stop", ``, "", "stop", "", ""},
		{"PATCH", "/balloon/hinting/stop", `{}`, "", "stop", "", ""},
		{"GET", "/balloon/hinting/status", ``, "", "hinting", `{"host_cmd":1,"guest_cmd":0}`, ""},
		{"GET", "/balloon/hinting/start", ``, "Invalid request method and/or path", nil, "", ""},
		{"PUT", "/balloon/hinting/start", `{}`, "Invalid request method and/or path", nil, "", ""},
		{"PATCH", "/balloon/hinting", `{}`, "Invalid request method and/or path", nil, "", ""},
		{"PATCH", "/balloon/hinting/", `{}`, "Invalid request method and/or path", nil, "", ""},
		{"GET", "/balloon/", ``, "Invalid request method and/or path", nil, "", ""},
		{"DELETE", "/balloon", `{}`, "Invalid request method and/or path", nil, "", ""},
		{"PUT", "/balloon/statistics", `{"stats_polling_interval_s": 7}`, "Invalid request method and/or path", nil, "", ""},
	} {
		t.Run(tt.method+" "+tt.path+" "+tt.body, func(t *testing.T) {
			refused := func(b *bench, when, want string, asked int) {
				t.Helper()
				if tt.fault != "" && asked == 0 {
					want = tt.fault
				}
				before := b.must(t, "GET", "/vm/config", "")
				status, answer := b.do(tt.method, tt.path, tt.body)
				if status != 400 || !strings.Contains(faultOf(t, answer), want) {
					t.Errorf("%s: %d %s, want 400 with %q", when, status, answer, want)
				}
				if len(b.machine.asked) != asked {
					t.Errorf("%s: the machine was asked for %v", when, b.machine.asked)
				}
				if after := b.must(t, "GET", "/vm/config", ""); after != before {
					t.Errorf("%s: a refused request changed %s to %s", when, before, after)
				}
			}
			without := newBench(t)
			refused(without, "before the start, without a balloon", beforeStart, 0)
			without.start(t)
			if without.machine.balloonErr = config.ErrNoBalloon; tt.config != "" {
				refused(without, "without a balloon", "No balloon device found.", 0)
			}
			b := newBench(t)
			b.must(t, "PUT", "/balloon", `{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1}`)
			refused(b, "before the start", beforeStart, 0)
			b.start(t)
			if tt.fault != "" {
				refused(b, "after the start", tt.fault, 0)
				return
			}
			b.machine.balloonErr = errFake
			refused(b, "by the machine", errFake.Error(), 1)
			b.machine.balloonErr = nil
			status, answer := b.do(tt.method, tt.path, tt.body)
			if want := map[bool]int{true: 200, false: 204}[tt.answer != ""]; status != want || answer != tt.answer {
				t.Errorf("%d %s, want %d %s", status, answer, want, tt.answer)
			}
			if !reflect.DeepEqual(b.machine.asked, []any{tt.asked, tt.asked}) {
				t.Errorf("the machine was asked for %+v, want %+v", b.machine.asked, tt.asked)
			}
			if got := b.must(t, "GET", "/balloon", ""); !strings.Contains(got, tt.config) {
				t.Errorf("afterwards %s, want %s in it", got, tt.config)
			}
		})
	}
}

func TestClientPutBalloon(t *testing.T) {
	b := newBench(t)
	c := NewClient(b.serve(t))
	defer c.Close()
	want := config.Balloon{AmountMiB: 3, DeflateOnOOM: true, StatsPollingIntervalS: 4, FreePageHinting: true, FreePageReporting: true}
	if err := c.PutBalloon(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	if vm, err := c.VMConfig(context.Background()); err != nil || vm.Balloon == nil || *vm.Balloon != want {
		t.Errorf("%+v, %v", vm.Balloon, err)
	}
}
