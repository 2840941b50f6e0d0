package api

import (
	"net/http"

	"github.com/containerd/log"
)

// maxLoggedBody bounds what a line of the log repeats of a request's body, in bytes: the fields of any request but a CPU template's.
const maxLoggedBody = 1024

// logRequest logs a request before anything comes of it, where and at the level where Firecracker does. A line has no metadata, which are
// the guest's secrets, and a CPU template, which is long, at debug level only.
func logRequest(r *http.Request, body []byte) {
	base := log.L.Logger
	if !base.IsLevelEnabled(log.InfoLevel) {
		return
	}
	path := shorten(r.URL.Path)
	fields := log.Fields{"method": shorten(r.Method), "path": path}
	switch {
	case len(body) == 0 || path == "/mmds":
	case path == "/cpu-config" && !base.IsLevelEnabled(log.DebugLevel):
	default:
		fields["body"] = shortenTo(string(body[:min(len(body), maxLoggedBody+1)]), maxLoggedBody)
	}
	log.G(r.Context()).WithFields(fields).Info("API: request received")
}
