package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// request is an HTTP request after its form has been checked.
type request struct {
	method string
	id     string // from the path
	body   []byte
	// deprecated tells client, log and metrics that the body asks for something which Firecracker will give up, also if it is refused later.
	// what is the end of a sentence.
	deprecated func(what string)
}

// decode has the whole body read by one of document's methods.
func decode[T any](r request, as func(document, member) (T, error)) (T, error) {
	d := document{text: r.body}
	if err := d.check(); err != nil {
		var zero T
		return zero, err
	}
	return as(d, member{raw: r.body})
}

// set has the description changed by one of the functions of set.go.
func set[T any](ctx context.Context, c *control, part T, into func(*config.VM, T) error) (any, error) {
	return nil, c.configure(ctx, func(vm *config.VM) error { return into(vm, part) })
}

// remove has a part taken out of the description. There is no hot-unplug yet: it is refused after the start.
func remove(ctx context.Context, c *control, id string, from func(*config.VM, string) error) (any, error) {
	if id == "" {
		return nil, sameID("", "?")
	}
	return nil, c.configure(ctx, func(vm *config.VM) error { return from(vm, id) })
}

// handler answers with a document, or with nil for 204.
type handler func(*Server, context.Context, request) (any, error)

// route finds the handler for a method and a path of one or two parts, and the id in the path. A handler decodes its
// body before it looks at the state, so that a body that is wrong at any time is called wrong at any time.
func route(method, path string) (handler, string) {
	part, id, two := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if two {
		switch method + " " + part {
		case "GET vm":
			if id == "config" {
				return (*Server).getVMConfig, ""
			}
		case "PUT mmds":
			if id == "config" {
				return (*Server).putMMDSConfig, ""
			}
		case "PUT drives":
			return (*Server).putDrive, id
		case "PATCH drives":
			return (*Server).patchDrive, id
		case "PUT filesystems":
			return (*Server).putFilesystem, id
		case "PUT network-interfaces":
			return (*Server).putNetworkInterface, id
		case "PATCH network-interfaces":
			return (*Server).patchNetworkInterface, id
		case "DELETE drives":
			return (*Server).deleteDrive, id
		case "DELETE filesystems":
			return (*Server).deleteFilesystem, id
		case "DELETE network-interfaces":
			return (*Server).deleteNetworkInterface, id
		case "PUT snapshot":
			if id == "create" || id == "load" {
				return notYet("snapshots"), ""
			}
		case "PUT pmem", "PATCH pmem", "DELETE pmem":
			return notYet("pmem devices"), id
		case "GET hotplug", "PUT hotplug", "PATCH hotplug":
			if id == "memory" {
				return notYet("memory hot-plug"), ""
			}
		case "GET balloon", "PATCH balloon":
			return routeBalloon(method, id), ""
		}
		return nil, ""
	}
	switch method + " " + part {
	case "GET ":
		return (*Server).getInfo, ""
	case "GET openapi.json":
		return (*Server).getOpenAPI, ""
	case "GET version":
		return (*Server).getVersion, ""
	case "GET machine-config":
		return (*Server).getMachine, ""
	case "PUT machine-config", "PATCH machine-config":
		return (*Server).putMachine, ""
	case "PUT cpu-config":
		return (*Server).putCPUConfig, ""
	case "PUT boot-source":
		return (*Server).putBootSource, ""
	case "PUT vsock":
		return (*Server).putVsock, ""
	case "PUT entropy":
		return (*Server).putEntropy, ""
	case "PUT serial":
		return (*Server).putSerial, ""
	case "PUT logger":
		return (*Server).putLogger, ""
	case "PUT metrics":
		return (*Server).putMetrics, ""
	case "GET mmds":
		return (*Server).getMetadata, ""
	case "PUT mmds", "PATCH mmds":
		return (*Server).putMetadata, ""
	case "GET balloon":
		return (*Server).getBalloon, ""
	case "PUT balloon":
		return (*Server).putBalloon, ""
	case "PATCH balloon":
		return (*Server).patchBalloon, ""
	case "PUT actions":
		return (*Server).putAction, ""
	case "PATCH vm":
		return (*Server).patchVM, ""
	}
	return nil, ""
}

// notYet is for what Firecracker has and this program will have.
func notYet(what string) handler {
	return func(*Server, context.Context, request) (any, error) {
		return nil, errdefs.ErrNotImplemented.WithMessage("not supported yet: " + what)
	}
}

// sameID is for bodies that repeat the path's id.
func sameID(path, body string) error {
	if path == body {
		return nil
	}
	if path == "" {
		return errdefs.ErrInvalidArgument.WithMessage("The ID cannot be empty.")
	}
	return errdefs.ErrInvalidArgument.WithMessage(
		fmt.Sprintf("The id from the path [%s] does not match the id from the body [%s]!", shorten(path), shorten(body)))
}

func (s *Server) getInfo(context.Context, request) (any, error) {
	state := config.NotStarted
	if _, m := s.control.snapshot(); m != nil {
		state = m.State()
	}
	return Info{ID: s.opts.ID, State: state, VMMVersion: s.opts.Version, AppName: AppName}, nil
}

func (s *Server) getVersion(context.Context, request) (any, error) {
	return map[string]string{"firecracker_version": s.opts.Version}, nil
}

func (s *Server) getVMConfig(context.Context, request) (any, error) {
	vm, _ := s.control.snapshot()
	return vm, nil
}

func (s *Server) getMachine(context.Context, request) (any, error) {
	vm, _ := s.control.snapshot()
	return vm.Machine, nil
}

func (s *Server) putMachine(ctx context.Context, r request) (any, error) {
	patch := r.method == http.MethodPatch
	var template bool
	apply := func(vm *config.VM) error {
		m, err := decode(r, func(d document, m member) (config.Machine, error) { return d.machine(m, vm.Machine, patch) })
		setMachine(vm, m, template)
		return err
	}
	// First on a copy: a body that is wrong is called wrong in any state.
	vm, _ := s.control.snapshot()
	if err := apply(&vm); err != nil {
		return nil, err
	}
	says, err := decode(r, document.says)
	switch {
	case err != nil:
		return nil, err
	case patch && len(says) == 0:
		return nil, emptyError(r.method)
	}
	if template = slices.Contains(says, "cpu_template"); template {
		r.deprecated("cpu_template field is deprecated.")
	}
	return nil, s.control.configure(ctx, apply)
}

func (s *Server) putCPUConfig(ctx context.Context, r request) (any, error) {
	c, err := decode(r, document.cpuConfig)
	if err != nil {
		return nil, err
	}
	return set(ctx, s.control, c, setCPUConfig)
}

func (s *Server) putBootSource(ctx context.Context, r request) (any, error) {
	b, err := decode(r, document.bootSource)
	if err != nil {
		return nil, err
	}
	return set(ctx, s.control, b, setBootSource)
}

func (s *Server) putDrive(ctx context.Context, r request) (any, error) {
	d, err := decode(r, document.drive)
	if err != nil {
		return nil, err
	}
	if err := sameID(r.id, d.DriveID); err != nil {
		return nil, err
	}
	return set(ctx, s.control, d, setDrive)
}

func (s *Server) putFilesystem(ctx context.Context, r request) (any, error) {
	f, err := decode(r, document.filesystem)
	if err != nil {
		return nil, err
	}
	if err := sameID(r.id, f.FSID); err != nil {
		return nil, err
	}
	return set(ctx, s.control, f, setFilesystem)
}

func (s *Server) putNetworkInterface(ctx context.Context, r request) (any, error) {
	n, err := decode(r, document.networkInterface)
	if err != nil {
		return nil, err
	}
	if err := sameID(r.id, n.IfaceID); err != nil {
		return nil, err
	}
	return set(ctx, s.control, n, setNetworkInterface)
}

func (s *Server) patchDrive(ctx context.Context, r request) (any, error) {
	u, err := decode(r, document.driveUpdate)
	if err != nil {
		return nil, err
	}
	if err := sameID(r.id, u.DriveID); err != nil {
		return nil, err
	}
	return nil, s.control.update(ctx, func(ctx context.Context, vm *config.VM) error { return updateDrive(ctx, vm, u) },
		func(m Machine, ctx context.Context) error { return m.UpdateDrive(ctx, u) })
}

func (s *Server) patchNetworkInterface(ctx context.Context, r request) (any, error) {
	u, err := decode(r, document.networkInterfaceUpdate)
	if err != nil {
		return nil, err
	}
	if err := sameID(r.id, u.IfaceID); err != nil {
		return nil, err
	}
	return nil, s.control.update(ctx, func(ctx context.Context, vm *config.VM) error { return updateNetworkInterface(ctx, vm, u) },
		func(m Machine, ctx context.Context) error { return m.UpdateNetworkInterface(ctx, u) })
}

func (s *Server) deleteDrive(ctx context.Context, r request) (any, error) {
	return remove(ctx, s.control, r.id, removeDrive)
}

func (s *Server) deleteFilesystem(ctx context.Context, r request) (any, error) {
	return remove(ctx, s.control, r.id, removeFilesystem)
}

func (s *Server) deleteNetworkInterface(ctx context.Context, r request) (any, error) {
	return remove(ctx, s.control, r.id, removeNetworkInterface)
}

func (s *Server) putVsock(ctx context.Context, r request) (any, error) {
	v, err := decode(r, document.vsock)
	if err != nil {
		return nil, err
	}
	if v.VsockID != "" {
		r.deprecated("vsock_id field is deprecated.")
	}
	return set(ctx, s.control, v, setVsock)
}

func (s *Server) putEntropy(ctx context.Context, r request) (any, error) {
	e, err := decode(r, document.entropy)
	if err != nil {
		return nil, err
	}
	return set(ctx, s.control, e, setEntropy)
}

func (s *Server) putSerial(ctx context.Context, r request) (any, error) {
	v, err := decode(r, document.serial)
	if err != nil {
		return nil, err
	}
	return set(ctx, s.control, v, setSerial)
}

func (s *Server) putAction(ctx context.Context, r request) (any, error) {
	a, err := decode(r, document.action)
	if err != nil {
		return nil, err
	}
	switch a.Type {
	case "InstanceStart":
		return nil, s.control.start(ctx)
	case "FlushMetrics":
		return nil, s.flush(ctx)
	}
	return nil, s.control.withMachine(ctx, Machine.SendCtrlAltDel)
}

func (s *Server) patchVM(ctx context.Context, r request) (any, error) {
	v, err := decode(r, document.runState)
	if err != nil {
		return nil, err
	}
	l := &s.metrics.Latencies
	if v.State == "Paused" {
		return nil, s.runState(ctx, &l.PauseVM, &l.VMMPauseVM, Machine.Pause)
	}
	return nil, s.runState(ctx, &l.ResumeVM, &l.VMMResumeVM, Machine.Resume)
}
