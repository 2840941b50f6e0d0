package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// Metadata are the data of the microVM's metadata service: one JSON value, that requests change before and after the start. It must
// be safe for concurrent use: guests read meanwhile.
type Metadata interface {
	// Put replaces the data by a JSON text. An error of the class errdefs.ErrResourceExhausted says that it is too large.
	Put(text []byte) error
	// Patch merges a JSON text into the data (RFC 7396), with the same error.
	Patch(text []byte) error
	// Text is the data as JSON, "" before the first Put.
	Text() string
}

// noMetadata is Firecracker's answer where nothing has been put yet, or the running microVM has no metadata service.
const noMetadata = "MMDS error: The MMDS data store is not initialized."

// metadata gives the data, unless the microVM has been started without a way to them.
func (s *Server) metadata() (Metadata, error) {
	vm, m := s.control.snapshot()
	if m != nil && vm.MMDS == nil || s.opts.Metadata == nil {
		return nil, errdefs.ErrFailedPrecondition.WithMessage(noMetadata)
	}
	return s.opts.Metadata, nil
}

func (s *Server) getMetadata(context.Context, request) (any, error) {
	data, err := s.metadata()
	if err != nil {
		return nil, err
	}
	text := data.Text()
	if text == "" || text == "null" {
		text = "{}"
	}
	return json.RawMessage(text), nil
}

// putMetadata is for PUT and PATCH.
func (s *Server) putMetadata(_ context.Context, r request) (any, error) {
	if err := (document{text: r.body}).check(); err != nil {
		return nil, err
	}
	data, err := s.metadata()
	if err != nil {
		return nil, err
	}
	change := data.Put
	if r.method == http.MethodPatch {
		change = data.Patch
	}
	switch err := change(r.body); {
	case errdefs.IsResourceExhausted(err):
		return nil, metadataTooLargeError{err}
	case err != nil:
		return nil, fmt.Errorf("MMDS error: %w", err)
	}
	return nil, nil
}

// metadataTooLargeError is answered with 413, as Firecracker does.
type metadataTooLargeError struct{ error }

func (e metadataTooLargeError) Error() string { return "MMDS limit exceeded error: " + e.error.Error() }

func (e metadataTooLargeError) Unwrap() error { return e.error }

func (s *Server) putMMDSConfig(ctx context.Context, r request) (any, error) {
	m, err := decode(r, document.mmds)
	if err != nil {
		return nil, err
	}
	if m.Version != config.MMDSV2 {
		r.deprecated("V1 is deprecated. Use V2 instead.")
	}
	return set(ctx, s.control, m, setMMDS)
}

func (d document) mmds(m member) (*config.MMDS, error) {
	var v config.MMDS
	if err := d.fill(m.raw, m.at, &v, schema{required: []string{"network_interfaces"}}); err != nil {
		return nil, err
	}
	return &v, v.Validate()
}

func setMMDS(vm *config.VM, m *config.MMDS) error {
	vm.MMDS = m
	return nil
}

// GetMetadata asks for the data of the metadata service, and stores them in what into points to.
func (c *Client) GetMetadata(ctx context.Context, into any) error {
	return c.call(ctx, http.MethodGet, "/mmds", nil, into)
}

// PutMetadata replaces the data of the metadata service by what v is as JSON.
func (c *Client) PutMetadata(ctx context.Context, v any) error {
	return c.call(ctx, http.MethodPut, "/mmds", v, nil)
}

// PatchMetadata merges what v is as JSON into the data of the metadata service.
func (c *Client) PatchMetadata(ctx context.Context, v any) error {
	return c.call(ctx, http.MethodPatch, "/mmds", v, nil)
}

// PutMMDSConfig gives the VM a metadata service.
func (c *Client) PutMMDSConfig(ctx context.Context, m config.MMDS) error {
	return c.call(ctx, http.MethodPut, "/mmds/config", m, nil)
}
