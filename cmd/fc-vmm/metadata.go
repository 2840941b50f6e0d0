package main

import (
	"fmt"
	"io"
	"os"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/mmds"
)

// newMetadata makes the metadata service's data, those of --metadata if there are any.
func newMetadata(s *settings) (*mmds.Store, error) {
	store := mmds.NewStore(s.mmdsLimit)
	if s.metadata == "" {
		return store, nil
	}
	f, err := os.Open(s.metadata)
	if err != nil {
		return nil, fmt.Errorf("--metadata: %w", err)
	}
	defer f.Close()
	// What does not count is white space.
	most := max(2*s.mmdsLimit, api.MaxConfigFile)
	text, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("--metadata: %w", err)
	case len(text) > most:
		return nil, fmt.Errorf("--metadata is %q: want at most %d bytes", s.metadata, most)
	}
	if err := store.Put(text); err != nil {
		return nil, fmt.Errorf("--metadata is %q, --mmds-size-limit %d: %w", s.metadata, s.mmdsLimit, err)
	}
	return store, nil
}
