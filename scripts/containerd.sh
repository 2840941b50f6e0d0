# shellcheck shell=bash
# Sourced by what runs in the KVM test machine: a containerd of its own, with the built shim and tools.

export PATH=${bin:?}:$bin/tools:$PATH
dir=$(mktemp -d "${SCRATCH:-$FC_SCRATCH}/containerd.XXXXXX")
export CONTAINERD_ADDRESS=$dir/containerd.sock CONTAINERD_NAMESPACE=demo

ms() { date +%s%3N; }

# start_containerd waits until it answers, at most 90 s.
start_containerd() {
	local plugins=() p
	for p in cri.v1.images cri.v1.runtime grpc.v1.cri nri.v1.nri tracing.processor.v1.otlp internal.v1.tracing \
		snapshotter.v1.{blockfile,btrfs,devmapper,erofs,native,zfs}; do plugins+=("\"io.containerd.$p\","); done
	cat >"$dir/config.toml" <<-C
		version = 3
		root = "$dir/root"
		state = "$dir/state"
		disabled_plugins = [${plugins[*]}]
		[grpc]
		  address = "$CONTAINERD_ADDRESS"
		[ttrpc]
		  address = "$CONTAINERD_ADDRESS.ttrpc"
		[debug]
		  level = "debug"
	C
	containerd --config "$dir/config.toml" >"$dir/log" 2>&1 &
	containerd_pid=$!
	local tries=0
	until ctr version >/dev/null 2>&1; do
		if ! kill -0 "$containerd_pid" 2>/dev/null || [ $((tries += 1)) -gt 450 ]; then
			tail "$dir/log" >&2
			die "containerd does not answer"
		fi
		sleep 0.2
	done
}

stop_containerd() {
	kill "$containerd_pid" 2>/dev/null || :
	wait "$containerd_pid" 2>/dev/null || :
	rm -rf "$dir"
}
