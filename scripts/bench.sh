#!/usr/bin/env bash
# bench.sh [RUNS]: how fast a container starts, in counted time (the machine's clock advances 1 ns an instruction, so that
# figures repeat on a busy machine), against limits:
#   boot: from InstanceStart until the agent has called the shim, at most 250 ms (1 vCPU, 128 MiB, our kernel). That is a
#         little more than until the agent's first instruction, which the limit is about.
#   run:  ctr run --rm … true with fc, at most 3 times as long as with runc
# Exits with status 1 if a limit is missed. Counted time compares designs; it is no time to publish.
. "$(dirname "$0")/lib.sh"
boot_limit=250 run_limit=3

if [ "${1:-}" != --in-machine ]; then
	image=$cache/busybox.tar
	name=$(cd "$root" && go run ./integration/ociimage/mkimage -o "$image")
	say "in counted time; this takes some minutes …"
	KVMHOST=nested ICOUNT=1 KVMHOST_TIMEOUT=${KVMHOST_TIMEOUT:-1500} \
		"$root/integration/kvmhost" "$root/scripts/bench.sh" --in-machine "$image" "$name" "${1:-5}"
	exit
fi
image=$2 name=$3 runs=$4
# All in memory: an idle CPU's clock jumps to its next timer, so that every wait for the host's disk would count as much more
# than it is.
SCRATCH=$(mktemp -d)
mount -t tmpfs tmpfs "$SCRATCH"
cp -r "$bin" "$image" "$SCRATCH/"
bin=$SCRATCH/bin image=$SCRATCH/${image##*/}
. "$root/scripts/containerd.sh"

median() { sort -n | awk '{v[NR]=$1} END{print NR % 2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }
# phase NAME: what the shim logged for each start, in ms.
phase() {
	grep -h 'pod started' "$dir/log" | grep -oE " $1=\"?[0-9.]+(s|ms|µs|ns)" | tr -d '"' | sed 's/.*=//' |
		awk '/ms$/{print $0+0; next} /µs$/{print $0/1e3; next} /ns$/{print $0/1e6; next} {print $0*1e3}'
}
# time_runs RUNTIME FILE: one run to warm up, then as many as asked for, each in ms.
time_runs() {
	local i t
	for i in $(seq 0 "$runs"); do
		t=$(ms)
		# shellcheck disable=SC2086 # options are words
		ctr run --rm --runtime "$1" ${3:-} "$name" "bench-$i" true
		[ "$i" = 0 ] || echo $(($(ms) - t))
		say "$1, run $i of $runs: $(($(ms) - t)) ms"
	done >"$2"
}

start_containerd
ctr image import --local "$image" >/dev/null
printf 'debug = true\nvcpus = 1\nmemory_mib = 128\n' >"$dir/fc.toml"
time_runs io.containerd.runc.v2 "$dir/runc"
time_runs io.containerd.fc.v2 "$dir/fc" "--runtime-config-path $dir/fc.toml"

runc=$(median <"$dir/runc") fc=$(median <"$dir/fc")
# The shim mounts and prepares its streams while the guest boots.
boot=$(paste -d ' ' <(phase start) <(phase mounts) <(phase stdio) <(phase boot) | awk '{print $1 + $2 + $3 + $4}' | median)
echo "medians of $runs runs, counted time:"
for p in check mounts spawn configure start boot stdio create; do
	printf '  %-10s %8.1f ms\n' $p "$(phase $p | median)"
done
awk -v boot="$boot" -v fc="$fc" -v runc="$runc" -v bl=$boot_limit -v rl=$run_limit 'BEGIN {
	bad = 0
	v = "ok"; if (boot > bl) { v = "MISSED"; bad = 1 }
	printf "InstanceStart to the agent: %.0f ms, limit %d ms: %s\n", boot, bl, v
	v = "ok"; if (fc > rl * runc) { v = "MISSED"; bad = 1 }
	printf "ctr run --rm … true: fc %.0f ms, runc %.0f ms, ratio %.2f, limit %d: %s\n", fc, runc, fc / runc, rl, v
	exit bad
}' || status=1
stop_containerd
exit "${status:-0}"
