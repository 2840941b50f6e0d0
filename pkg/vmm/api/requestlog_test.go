package api

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// capture has the log written to a buffer, as JSON.
func capture(t *testing.T, level string) *bytes.Buffer {
	base := log.L.Logger
	out, form, old := base.Out, base.Formatter, log.GetLevel()
	t.Cleanup(func() {
		base.SetOutput(out)
		base.SetFormatter(form)
		base.SetLevel(old)
	})
	var b bytes.Buffer
	base.SetOutput(&b)
	base.SetFormatter(&logrus.JSONFormatter{DisableTimestamp: true})
	if err := log.SetLevel(level); err != nil {
		t.Fatal(err)
	}
	return &b
}

// Each request is logged before what comes of it, whether it is good or not; none of the metadata, of CPU templates at debug level.
func TestRequestLog(t *testing.T) {
	long := `{"serial_out_path": "` + strings.Repeat("x", 2*maxLoggedBody) + `"}`
	for _, tt := range []struct {
		level, method, path, body string
		want                      string // the body's line; "" for no field, "-" for no line
	}{
		{"info", "PUT", "/entropy", `{}`, `{}`},
		{"info", "PUT", "/entropy", "{\n}", "{\n}"},
		{"info", "PUT", "/entropy", `{"x": 1}`, `{"x": 1}`},
		{"info", "PUT", "/serial", long, long[:maxLoggedBody] + "..."},
		{"info", "GET", "/", "", ""},
		{"info", "GET", "/", "{}", "{}"},
		{"info", "PUT", "/nothing", `{"x": 1}`, ""},
		{"info", "PUT", "/mmds", `{"secret": 1}`, ""},
		{"debug", "PATCH", "/mmds", `{"secret": 1}`, ""},
		{"debug", "PUT", "/mmds", `{"secret": `, ""},
		{"debug", "PUT", "//mmds", `{"secret": 1}`, ""},
		{"debug", "PUT", "/mmds/", `{"secret": 1}`, ""},
		{"debug", "PUT", "/mmds?x", `{"secret": 1}`, ""},
		{"info", "PUT", "/mmds/config", `{"network_interfaces": []}`, `{"network_interfaces": []}`},
		{"info", "PUT", "/cpu-config", `{"cpuid_modifiers": []}`, ""},
		{"debug", "PUT", "/cpu-config", `{"cpuid_modifiers": []}`, `{"cpuid_modifiers": []}`},
		{"info", "PUT", "/entropy", strings.Repeat(" ", MaxBody+1), ""},
		{"warn", "PUT", "/entropy", `{}`, "-"},
		{"error", "PUT", "/nothing", `{}`, "-"},
	} {
		t.Run(tt.level+" "+tt.method+" "+tt.path, func(t *testing.T) {
			b := newBench(t)
			out := capture(t, tt.level)
			b.do(tt.method, tt.path, tt.body)
			if strings.Contains(out.String(), "secret") {
				t.Errorf("metadata in the log: %s", out)
			}
			first, _, _ := strings.Cut(out.String(), "\n")
			if tt.want == "-" {
				if first != "" {
					t.Errorf("logged: %s", first)
				}
				return
			}
			var got map[string]string
			if err := json.Unmarshal([]byte(first), &got); err != nil {
				t.Fatalf("%v in %q", err, first)
			}
			path, _, _ := strings.Cut(tt.path, "?")
			want := map[string]string{"level": "info", "msg": "API: request received", "method": tt.method, "path": path, "thread": "fc_api"}
			if tt.want != "" {
				want["body"] = tt.want
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestRequestLogCostsNothing(t *testing.T) {
	capture(t, "warn")
	r, body := httptest.NewRequest("PUT", "/entropy", nil), []byte("{}")
	if n := testing.AllocsPerRun(100, func() { logRequest(r, body) }); n != 0 {
		t.Errorf("%v allocations for a line that nobody wants", n)
	}
}
