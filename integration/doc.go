// Package integration holds the tests of the whole: real containerd, ctr and containerd's Go client on one side, containers in
// microVMs on the other. They need root, KVM (integration/kvmhost gives one anywhere) and what `make build tools` builds.
//
//	integration/kvmhost go test ./integration -v
//
// What they claim of every runtime they can be shown to claim rightly: FC_RUNTIME=io.containerd.runc.v2 runs them with runc.
package integration
