// Package hostile is a bare-metal guest whose drivers want to do harm. The guest itself is an interpreter of some two hundred bytes,
// run by two vCPUs: each works off a script of register accesses, port accesses and writes to guest RAM, by real exits of a real KVM.
// The scripts, and the rings, descriptors and requests that they are about, come from a seed, in the process of the test, which maps
// the guest's RAM too: it knows what a driver may do (virtio 1.2), and does something else now and then.
//
// It is for tests only. It must never write where its own program lies, nor have a device do so, as far as it can foresee: a guest
// that has shot itself shows nothing.
package hostile
