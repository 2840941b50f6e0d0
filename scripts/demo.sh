#!/usr/bin/env bash
# demo.sh: a busybox image in a microVM, through a real containerd; where there is no KVM, in the nested machine.
. "$(dirname "$0")/lib.sh"
runtime=io.containerd.fc.v2

if [ "${1:-}" != --in-machine ]; then
	began=$SECONDS
	image=$cache/busybox.tar
	name=$(cd "$root" && go run ./integration/ociimage/mkimage -o "$image")
	KVMHOST_TIMEOUT=${KVMHOST_TIMEOUT:-600} "$root/integration/kvmhost" "$root/scripts/demo.sh" --in-machine "$image" "$name"
	say "all of it took $((SECONDS - began)) s"
	exit
fi
image=$2 name=$3
. "$root/scripts/containerd.sh"

t0=$(ms)
start_containerd
t1=$(ms)
ctr image import --local "$image" >/dev/null
t2=$(ms)
printf 'debug = true\n' >"$dir/fc.toml"

cat <<'T'

$ ctr run --rm --runtime io.containerd.fc.v2 docker.io/library/busybox:fc hello sh -c '…; exit 7'
T
status=0
# shellcheck disable=SC2016 # the guest's shell expands it
ctr run --rm --runtime $runtime --runtime-config-path "$dir/fc.toml" "$name" hello sh -c '
	echo "  kernel:  $(uname -r)"
	echo "  memory:  $(sed -n "s/^MemTotal: *//p" /proc/meminfo)"
	echo "  cpus:    $(grep -c ^processor /proc/cpuinfo)"
	echo "  user:    $(id)"
	echo "  root:    $(ls / | tr "\n" " ")"
	exit 7' >"$dir/out" 2>"$dir/err" || status=$?
t3=$(ms)
cat "$dir/out"
cat "$dir/err" >&2
guest=$(sed -n 's/^  kernel:  //p' "$dir/out")

printf '\n%-22s %-28s %s\n' '' 'host' 'container'
printf '%-22s %-28s %s\n' 'uname -r' "$(uname -r)" "${guest:-none}"
printf '%-22s %-28s %s\n' 'exit status' '' "$status (7 was asked for)"
printf '\n%s\n' "How long it took ($([ "$FC_KVMHOST" = direct ] && echo 'real KVM' || echo 'nested machine: every instruction is emulated')):"
printf '  %-26s %6d ms\n' 'start of containerd' $((t1 - t0)) 'import of the image' $((t2 - t1)) 'ctr run, in all' $((t3 - t2))
# The shim says how long each phase of the start took.
line=$(grep -h 'pod started' "$dir/log" | tail -n 1)
for phase in check host spawn mounts stdio start boot create total; do
	took=$(grep -oE " $phase=\"?[0-9.]+[µmn]?s" <<<"$line") && printf '    %-24s %12s\n' "$phase" "$(tr -d '"' <<<"${took#*=}")"
done
stop_containerd
if [ "$status" != 7 ] || [ -z "$guest" ] || [ "$guest" = "$(uname -r)" ]; then die "that is not what was asked for"; fi
