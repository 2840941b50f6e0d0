// Package shim is containerd's runtime shim for microVMs: it serves the task API (v3) for a pod, which is one VM and the
// containers in it, by driving two others: fc-vmm, with a description in Firecracker's form, and the agent inside the guest over ttrpc.
//
// It must never parse a byte laid out by a guest kernel: rings, FUSE and vsock headers belong to fc-vmm. What comes from
// the agent is untrusted too and arrives as bounded protobuf messages or as raw bytes that go to a client's FIFO unread.
//
// State lives in the bundle and in the kernel only: any later shim process can clean up after this one with `delete`.
package shim
