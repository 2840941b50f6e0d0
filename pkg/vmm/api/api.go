// Package api is Firecracker's HTTP API on a Unix socket: the server that fc-vmm offers, and the client that the shim
// uses. It turns requests into one config.VM, has that booted once, and passes pauses on. It must never parse what a guest
// has written, touch a device, or record anything that it has not checked.
//
// Answers are 200 with a document, 204, or 400 (413 for a body that is too large) with {"fault_message": "..."}. Messages
// are Firecracker's where a client may compare them; the others name the field, its value and what is allowed.
//
// The part of the API that is served:
//
//	GET   /                   id, state (Ended too, which Firecracker has not), vmm_version, app_name
//	GET   /openapi.json       all of this for programs: fields, types, ranges; not in Firecracker
//	GET   /version            firecracker_version
//	GET   /vm/config          everything that has been configured, with defaults filled in
//	GET   /machine-config     PUT and PATCH too
//	PUT   /cpu-config         a custom CPU template, in place of machine-config's cpu_template: the last one named counts
//	PUT   /boot-source
//	PUT   /drives/{id}        DELETE too, before the start, as of the other two with an id
//	PATCH /drives/{id}        after the start: path_on_host, rate_limiter
//	PUT   /filesystems/{id}   not in Firecracker: fs_id, tag, path_on_host, is_read_only, socket
//	PUT   /network-interfaces/{id}
//	PATCH /network-interfaces/{id}   after the start: rx_rate_limiter, tx_rate_limiter
//	PUT   /vsock
//	PUT   /entropy
//	PUT   /serial
//	GET   /mmds               PUT and PATCH too, before and after the start
//	PUT   /mmds/config
//	PUT   /logger             before the start, again and again
//	PUT   /metrics            before the start, once
//	GET   /balloon            PUT too; PATCH after the start: amount_mib
//	GET   /balloon/statistics after the start, as PATCH: stats_polling_interval_s
//	PATCH /balloon/hinting/start, /balloon/hinting/stop, and GET /balloon/hinting/status: after the start
//	PUT   /actions            InstanceStart; after it FlushMetrics and SendCtrlAltDel
//	PATCH /vm                 Paused or Resumed, after the start
//
// /snapshot/create, /snapshot/load, /pmem/{id} and /hotplug/memory are refused as not supported yet.
package api

import (
	"context"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// AppName is what GET / calls this program.
const AppName = "fc-vmm"

// MaxBody bounds a request's body, in bytes, as Firecracker does, unless Options.MaxBody does.
const MaxBody = 51200

// Info is the answer to GET /.
type Info struct {
	ID         string       `json:"id"`
	State      config.State `json:"state"`
	VMMVersion string       `json:"vmm_version"`
	AppName    string       `json:"app_name"`
}

// Machine is what the API needs of a microVM that has been started. Calls are serialised, State excepted.
type Machine interface {
	// State says where the machine is in its life. It does not wait.
	State() config.State
	// Pause stops all vCPUs; pausing a paused machine does nothing.
	Pause(ctx context.Context) error
	// Resume lets them run again; resuming a running machine does nothing.
	Resume(ctx context.Context) error
	// SendCtrlAltDel presses the keys on the guest's keyboard.
	SendCtrlAltDel(ctx context.Context) error
	// UpdateDrive makes all of a change or nothing, and so does UpdateNetworkInterface.
	UpdateDrive(ctx context.Context, u config.DriveUpdate) error
	UpdateNetworkInterface(ctx context.Context, u config.NetworkInterfaceUpdate) error
	Ballooner
}

// Options of a Server. ID, Version and Boot are required.
type Options struct {
	// ID of the microVM, for GET /.
	ID string
	// Version of the program, for GET / and GET /version.
	Version string
	// Boot builds a machine from a valid configuration and starts it. After an error nothing of it is left, and it may be
	// called again. The context has values but no end: the machine outlives the request.
	Boot func(ctx context.Context, vm config.VM) (Machine, error)
	// Described, if there is one, is called once, when a first piece of the description has been taken. What a Boot will need whatever
	// else comes can be begun there; it must not wait.
	Described func()
	// MaxBody bounds a request's body, in bytes; 0 is the constant MaxBody.
	MaxBody int
	// Metadata are those of the microVM that is to be started; nil has them refused.
	Metadata Metadata
	// Logger configures the process's log; nil refuses that.
	Logger func(config.Logger) error
	// Metrics counts the requests, and is configured by them; nil counts for nobody, and refuses that.
	Metrics *metrics.Recorder
}

// Bounds on what a client can make the server do or wait for.
const (
	maxConns        = 32
	maxHeaderBytes  = 8 << 10
	headerTimeout   = 5 * time.Second
	readTimeout     = 10 * time.Second
	writeTimeout    = 60 * time.Second
	idleTimeout     = 60 * time.Second
	turnTimeout     = 10 * time.Second // for the requests before this one
	runStateTimeout = 10 * time.Second // to pause, resume or update
)
