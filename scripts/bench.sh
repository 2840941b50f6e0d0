#!/usr/bin/env bash
# bench.sh [RUNS]: what a container costs, against limits. First, while it does nothing:
#   memory: private memory of shim, fc-vmm and holder together, without the guest's RAM, at most 12 MiB. Two containers run, and
#           one is looked at, so that what all have in common (programs) counts as shared.
# Then how fast it starts, in counted time (the machine's clock advances 1 ns an instruction, so that figures repeat on a busy
# machine):
#   boot: from InstanceStart until the agent has called the shim, at most 250 ms (1 vCPU, 128 MiB, our kernel). That is a
#         little more than until the agent's first instruction, which the limit is about.
#   run:  ctr run --rm … true with fc, at most 3 times as long as with runc
# Exits with status 1 if a limit is missed. Counted time compares designs; it is no time to publish.
# An emulated machine that counts can stand still: then a new one goes on, and the samples are kept.
. "$(dirname "$0")/lib.sh"
boot_limit=250 run_limit=3 memory_limit=12288 # ms, times runc's, KiB
fc=io.containerd.fc.v2 runc=io.containerd.runc.v2
phases=(check host mounts spawn configure start boot stdio create)

# In the machine: a line for each process of an idle container: ROLE THREADS FILES PRIVATE SHARED PSS GUEST-RAM, the last four in KiB.
if [ "${1:-}" = --idle ]; then
	image=$2 name=$3
	. "$root/scripts/containerd.sh"
	start_containerd
	ctr image import --local "$image" >/dev/null
	for id in bench-1 bench-2; do ctr run -d --runtime $fc "$name" $id sleep 1000000; done
	sleep 10 # what the start needed is given back meanwhile
	for proc in /proc/[0-9]*; do
		args=$(tr '\0' ' ' <"$proc/cmdline") 2>/dev/null || continue
		case "$args" in
		*/containerd-shim-fc-v2\ *" -id bench-1 "*) role=shim ;;
		*/fc-vmm\ --id\ bench-1\ *) role='fc-vmm' ;;
		*/fc-vmm\ hold\ *" bench-1 "*) role=holder ;;
		*) continue ;;
		esac
		# A mapping's own line, "start-end … name", comes before its sizes.
		awk -v head="$role $(find "$proc/task" -mindepth 1 -maxdepth 1 | wc -l) $(find "$proc/fd" -mindepth 1 -maxdepth 1 | wc -l)" '
			/^[0-9a-f]+-[0-9a-f]+ / { ram = /memfd:guest-ram/ }
			/^Rss:/ && ram { guest += $2 }
			ram { next }
			/^Private_/ { private += $2 }
			/^Shared_/ { shared += $2 }
			/^Pss:/ { pss += $2 }
			END { print head, private + 0, shared + 0, pss + 0, guest + 0 }' "$proc/smaps"
	done
	for id in bench-1 bench-2; do ctr task rm -f $id >/dev/null 2>&1; done
	stop_containerd
	exit
fi

# In the machine: a line for each sample, in ms: RUNTIME TIME [PHASE=TIME …].
if [ "${1:-}" = --in-machine ]; then
	image=$2 name=$3
	declare -A todo=([$runc]=$4 [$fc]=$5)
	# All in memory: an idle CPU's clock jumps to its next timer, so that every wait for the host's disk would count as much more
	# than it is.
	SCRATCH=$(mktemp -d)
	mount -t tmpfs tmpfs "$SCRATCH"
	cp -r "$bin" "$image" "$SCRATCH/"
	bin=$SCRATCH/bin image=$SCRATCH/${image##*/}
	. "$root/scripts/containerd.sh"
	start_containerd
	ctr image import --local "$image" >/dev/null
	printf 'debug = true\nvcpus = 1\nmemory_mib = 128\n' >"$dir/fc.toml"
	options=()
	for runtime in $runc $fc; do
		[ "$runtime" = $runc ] || options=(--runtime-config-path "$dir/fc.toml")
		[ "${todo[$runtime]}" -gt 0 ] || continue
		for ((i = 0; i <= todo[$runtime]; i++)); do
			began=$(ms)
			ctr run --rm --runtime "$runtime" "${options[@]}" "$name" "bench-$i" true
			took=$(($(ms) - began))
			# The first warms up.
			[ $i != 0 ] || continue
			echo "$runtime $took $(grep -h 'pod started' "$dir/log" | tail -n 1 | grep -oE ' [a-z]+="?[0-9.]+(s|ms|µs|ns)' | tr -d '"\n')"
		done
	done
	stop_containerd
	exit
fi

runs=${1:-5} image=$cache/busybox.tar
name=$(cd "$root" && go run ./integration/ociimage/mkimage -o "$image")
samples=$(mktemp "$cache/bench.XXXXXX")
trap 'rm -f "$samples" "$samples.idle"' EXIT
missed=0

for attempt in 1 2 3; do
	say "memory of an idle container (machine $attempt) …"
	KVMHOST_TIMEOUT=${KVMHOST_TIMEOUT:-300} "$root/integration/kvmhost" "$root/scripts/bench.sh" --idle "$image" "$name" >"$samples.idle" || :
	[ "$(cut -d ' ' -f 1 "$samples.idle" | sort | paste -sd ' ')" != 'fc-vmm holder shim' ] || break
done
awk -v limit=$memory_limit '
	BEGIN { printf "an idle container, KiB:\n  %-8s %8s %8s %8s %8s %8s\n", "", "private", "shared", "pss", "threads", "files" }
	{ printf "  %-8s %8d %8d %8d %8d %8d\n", $1, $4, $5, $6, $2, $3; private += $4; guest += $7; seen++ }
	END {
		if (seen != 3) { print "only " seen + 0 " of its 3 processes were seen: MISSED"; exit 1 }
		printf "the guest\047s RAM in use: %d KiB\n", guest
		printf "private memory without the guest\047s RAM: %d KiB, limit %d KiB: %s\n", private, limit, (private > limit ? "MISSED" : "ok")
		exit (private > limit)
	}' "$samples.idle" || missed=1

count() { grep -c "^$1 " "$samples" || :; }
missing() { echo $((runs > $(count "$1") ? runs - $(count "$1") : 0)); }
for attempt in 1 2 3 4 5 6; do
	say "$runs runs of each runtime in counted time; this takes some minutes (machine $attempt) …"
	KVMHOST=nested ICOUNT=1 KVMHOST_TIMEOUT=${KVMHOST_TIMEOUT:-300} "$root/integration/kvmhost" \
		"$root/scripts/bench.sh" --in-machine "$image" "$name" "$(missing $runc)" "$(missing $fc)" | tee -a "$samples" || :
	[ "$(missing $runc)$(missing $fc)" != 00 ] || break
done
[ "$(missing $runc)$(missing $fc)" = 00 ] || die "only $(count $runc) samples of runc and $(count $fc) of fc in $attempt machines"

median() { sort -n | awk '{v[NR]=$1} END{print NR % 2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }
whole() { awk -v r="$1" '$1 == r {print $2}' "$samples" | median; }
# phase NAME: what the shim logged for each start, in ms.
phase() {
	grep -oE " $1=[0-9.]+(s|ms|µs|ns)" "$samples" | sed 's/.*=//' |
		awk '/ms$/{print $0+0; next} /µs$/{print $0/1e3; next} /ns$/{print $0/1e6; next} {print $0*1e3}'
}
# The shim mounts and prepares its streams while the guest boots.
boot=$(paste -d ' ' <(phase start) <(phase mounts) <(phase stdio) <(phase boot) | awk '{print $1 + $2 + $3 + $4}' | median)
echo "medians of $runs runs, counted time:"
for p in "${phases[@]}"; do printf '  %-10s %8.1f ms\n' "$p" "$(phase "$p" | median)"; done
awk -v boot="$boot" -v fc="$(whole $fc)" -v runc="$(whole $runc)" -v bl=$boot_limit -v rl=$run_limit -v bad=$missed 'BEGIN {
	v = "ok"; if (boot > bl) { v = "MISSED"; bad = 1 }
	printf "InstanceStart to the agent: %.0f ms, limit %d ms: %s\n", boot, bl, v
	v = "ok"; if (fc > rl * runc) { v = "MISSED"; bad = 1 }
	printf "ctr run --rm … true: fc %.0f ms, runc %.0f ms, ratio %.2f, limit %d: %s\n", fc, runc, fc / runc, rl, v
	exit bad
}'
