// Package sdk has firecracker-go-sdk, a client written for Firecracker by others, drive fc-vmm in Firecracker's place: nothing in the SDK
// is changed, and its defaults are kept but for time limits, which are too short for an emulated machine. It holds tests only, in a module
// of its own so that the product's dependencies stay few.
package sdk
