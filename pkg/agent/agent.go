// Package agent is what the shim and the guest's agent share, and the shim's end of their connections.
//
// The guest dials the host, never the other way round. One connection to ControlPort carries ttrpc, on which the shim is the
// client although it accepted; each byte stream of a process is a connection of its own to StreamPort that opens with an
// eight-byte header (see StreamBroker). The messages are in agentpb.
//
// The guest is hostile: this package must never wait without a bound for what it sends, nor keep what nobody asked for.
//
// Within a guest, containers are not to reach each other's streams, but any process that may make an AF_VSOCK socket can dial
// StreamPort. So ids are random: a stream goes to whoever knows its id, which only the agent was told. What such a process can
// do is to hold MaxUnnamed connections open, again and again, without a word, so that the agent's own are refused: that is a
// denial of service to the containers of its own VM, and to nobody else, and a seccomp profile that denies AF_VSOCK ends it.
package agent

import "time"

// Ports on the host (vsock CID 2) that the guest dials; the VMM forwards port N to the Unix socket <uds>_N.
const (
	ControlPort = 1024
	StreamPort  = 1025
)

// The tree that shim and guest share over virtio-fs: its tag, and where the agent mounts it.
const (
	SharedTag = "shared"
	SharedDir = "/run/shared"
)

// How long an orderly end of a guest may take. The shim's patience must exceed what the agent allows itself, or it would kill
// a VM that is still writing.
const (
	// StopTimeout is how long the agent waits for containers to end, after SIGTERM and again after SIGKILL.
	StopTimeout = 2 * time.Second
	// SyncTimeout is how long it then waits for dirty pages to be written.
	SyncTimeout = 5 * time.Second
	// ShutdownTimeout bounds all of it, with a second for the answer.
	ShutdownTimeout = 2*StopTimeout + SyncTimeout + time.Second
)
