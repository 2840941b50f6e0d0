package shim

import (
	"fmt"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// settingsFromOptions finds the settings for a CreateTaskRequest's options. ctr's --runtime-config-path and CRI's
// ConfigPath name a file; CRI's inline options arrive as a TOML body. Options of other types (runc's, which clients send
// out of habit) hold nothing that applies here and are passed over.
func settingsFromOptions(options typeurl.Any) (*Settings, error) {
	if options == nil || options.GetTypeUrl() == "" || !typeurl.Is(options, &runtimeoptions.Options{}) {
		return loadSettings("")
	}
	var o runtimeoptions.Options
	if err := typeurl.UnmarshalTo(options, &o); err != nil {
		return nil, fmt.Errorf("cannot read the runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if o.ConfigPath == "" && len(o.ConfigBody) > 0 {
		return parseSettings("in the runtime options", o.ConfigBody)
	}
	return loadSettings(o.ConfigPath)
}
