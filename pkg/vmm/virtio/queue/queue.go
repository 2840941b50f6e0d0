// Package queue is a split virtqueue (virtio 1.2 §2.7) that trusts nothing.
package queue

// Queue is a split virtqueue as its device sees it.
type Queue struct{}
