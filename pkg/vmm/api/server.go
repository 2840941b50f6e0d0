package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"strings"

	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/logger"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// Server serves the API of one microVM. Its methods are safe for concurrent use.
type Server struct {
	opts    Options
	control *control
	metrics *metrics.Recorder // that of opts, or nobody's
	http    *http.Server
}

// NewServer makes a server that does nothing yet.
func NewServer(o Options) *Server {
	if o.MaxBody == 0 {
		o.MaxBody = MaxBody
	}
	s := &Server{opts: o, control: newControl(o), metrics: o.Metrics}
	if s.metrics == nil {
		s.metrics = metrics.NewRecorder(o.ID)
	}
	s.http = &http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		ErrorLog:                     stdlog.New(logWriter{}, "", 0),
	}
	return s
}

// Serve answers on l until Close or Shutdown, after which it returns nil. It closes l.
func (s *Server) Serve(l net.Listener) error {
	limited := newConnLimit(l, maxConns)
	s.http.ConnState = limited.connState
	if err := s.http.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("API: %w", err)
	}
	return nil
}

// Shutdown ends Serve: no new requests, and those under way have until ctx ends.
func (s *Server) Shutdown(ctx context.Context) {
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
}

// Start boots the microVM as configured, as InstanceStart does.
func (s *Server) Start(ctx context.Context) error { return s.control.start(ctx) }

// Retire waits until no request is changing anything, and has none change anything from then on: no machine is being booted
// after it. The error is ctx's, and says what was waited for.
func (s *Server) Retire(ctx context.Context) error { return s.control.retire(ctx) }

// ServeHTTP checks a request's form, has it routed, and writes the answer.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "Firecracker API")
	r = r.WithContext(log.WithLogger(r.Context(), log.L.WithField(logger.ThreadField, "fc_api")))
	answer, err := s.serve(w, r)
	if err != nil {
		log.G(r.Context()).WithError(err).WithFields(log.Fields{"method": r.Method, "path": shorten(r.URL.Path)}).Info("API: request refused")
		writeFault(w, err)
		return
	}
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	body, ready := answer.(json.RawMessage)
	if !ready {
		if body, err = json.Marshal(answer); err != nil {
			writeFault(w, err)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(body)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) (_ any, err error) {
	h, id := route(r.Method, r.URL.Path)
	if h == nil || !strings.HasPrefix(r.URL.Path, "/") || r.URL.RawQuery != "" {
		logRequest(r, nil)
		//lint:ignore ST1005 Firecracker's sentence: clients and scripts know it
		return nil, fmt.Errorf("Invalid request method and/or path: %s %s.", shorten(r.Method), shorten(r.RequestURI))
	}
	defer func() { s.count(r.Method, r.URL.Path, err) }()
	body, err := s.body(w, r)
	logRequest(r, body)
	switch {
	case err != nil:
		return nil, err
	case (r.Method == http.MethodGet || r.Method == http.MethodDelete) && len(body) > 0:
		//lint:ignore ST1005 Firecracker's sentence
		return nil, fmt.Errorf("%s request cannot have a body.", r.Method)
	case r.Method != http.MethodGet && r.Method != http.MethodDelete && len(body) == 0 && !mayBeEmpty(r.URL.Path):
		return nil, emptyError(r.Method)
	}
	return h(s, r.Context(), request{method: r.Method, id: id, body: body, deprecated: func(what string) {
		w.Header().Set("Deprecation", "true")
		s.metrics.DeprecatedAPI.HTTPCalls.Inc()
		log.G(r.Context()).Warnf("%s %s: %s", r.Method, r.URL.Path, what)
	}})
}

// body reads a request's body, of bounded size.
func (s *Server) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	limit := int64(s.opts.MaxBody)
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close") // else the answer would wait for the body
		return nil, tooLargeError{limit}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, tooLargeError{limit}
	case err != nil:
		return nil, fmt.Errorf("the request's body did not arrive: %w", err)
	}
	return body, nil
}

// emptyError is for a request that asks for nothing.
func emptyError(method string) error {
	//lint:ignore ST1005 Firecracker's sentence
	return fmt.Errorf("Empty %s request.", method)
}

type tooLargeError struct{ limit int64 }

func (e tooLargeError) Error() string {
	return fmt.Sprintf("the request's body is larger than the %d bytes allowed", e.limit)
}

// fault is the body of a refusal.
type fault struct {
	Message string `json:"fault_message"`
}

func writeFault(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	if errors.As(err, new(tooLargeError)) || errors.As(err, new(metadataTooLargeError)) {
		status = http.StatusRequestEntityTooLarge
	}
	msg := err.Error()
	var de *decodeError
	if errors.As(err, &de) {
		msg = "An error occurred when deserializing the json body of a request: " + msg
	}
	body, _ := json.Marshal(fault{msg}) // a string always marshals
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

// logWriter has net/http's own complaints logged like everything else.
type logWriter struct{}

func (logWriter) Write(p []byte) (int, error) {
	log.L.Warn("API: " + strings.TrimSpace(string(p)))
	return len(p), nil
}
