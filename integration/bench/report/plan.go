package main

import "time"

// part is benchmarks that run in one machine, one after another.
type part struct {
	name string
	// bench is what `go test -bench` matches.
	bench string
	// micro is for benchmarks of packages, not of integration/bench.
	micro bool
	// rounds is how many samples there are of each figure; 0 is what the command line says.
	rounds int
	// memory is the machine's; empty for kvmhost's default.
	memory string
	limit  time.Duration
	env    []string // more variables, over the caller's
}

// full is all that there is. A part is a machine's start, so what belongs together shares one. But for the execs, none is so long
// that to repeat it, when its machine has died, hurts.
func full() []part {
	return []part{
		// The longest: it has one of two machines for itself, nearly as long as all others have the other one.
		{name: "execs", bench: "^BenchmarkExecs$", rounds: 1, limit: 120 * time.Minute, env: []string{"FC_BENCH_EXECS=10000"}},
		{name: "run", bench: "^Benchmark(Run|Exec|Task)$", rounds: 15, limit: 30 * time.Minute},
		{name: "start", bench: "^BenchmarkStart$", limit: 40 * time.Minute},
		{name: "boot", bench: "^Benchmark(Boot|BootBalloon|Socket)$", limit: 30 * time.Minute},
		{name: "block", bench: "^BenchmarkBlock$", rounds: 3, limit: 40 * time.Minute},
		{name: "readers", bench: "^BenchmarkReaders$", rounds: 3, limit: 40 * time.Minute, env: []string{"CPUS=4"}},
		{name: "fs", bench: "^BenchmarkFS$", rounds: 3, limit: 60 * time.Minute},
		{name: "net", bench: "^BenchmarkNet$", rounds: 3, limit: 40 * time.Minute},
		{name: "vsock", bench: "^BenchmarkVsock$", rounds: 3, limit: 40 * time.Minute},
		{name: "stdio", bench: "^Benchmark(Stdout|Stdin)$", rounds: 3, limit: 40 * time.Minute},
		{name: "pods", bench: "^BenchmarkPods$", rounds: 1, memory: "8G", limit: 60 * time.Minute},
		code(),
	}
}

// code is the pieces of the data paths by themselves.
func code() part {
	return part{name: "code", micro: true, bench: "^Benchmark(Exit|PopPush|Read4K|Read128K|Getattr|Transmit|Receive|ToHost|ToGuest)$", rounds: 20000, limit: 5 * time.Minute}
}

// microPackages have them.
func microPackages() []string {
	return []string{
		"./pkg/vmm", "./pkg/vmm/virtio/queue", "./pkg/vmm/virtio/block", "./pkg/vmm/virtio/net", "./pkg/vmm/virtio/vsock", "./pkg/vmm/virtio/fs",
	}
}

// short is what SPECIFICATION.md's limits need, in two machines, of which two run at once.
func short() []part {
	return []part{
		{name: "containers", bench: "^Benchmark(Run|Exec|Start)$/^(fc|runc|1cpu-128MiB)$", limit: 7 * time.Minute},
		code(),
		{name: "machines", bench: "^Benchmark(Boot|Socket|Block)$/^(fc|qemu|read-seq|read-4k-qd1)$", rounds: 3, limit: 7 * time.Minute},
		{name: "pods", bench: "^BenchmarkPods$/^1$", rounds: 1, limit: 3 * time.Minute},
	}
}
