#!/usr/bin/env bash
# steady.sh [SECONDS [GUESTS]]: how steady is the KVM test machine? Boots GUESTS small guests at once on fc-vmm, again and
# again, each with work that exercises page tables, and counts those that did not power off in order.
# To compare: KVMHOST_QEMU, KVMHOST_THREADS, KVMHOST_KVM_AMD (integration/testbed/doc.go).
. "$(dirname "$0")/lib.sh"
seconds=${1:-120} guests=${2:-10}

work=$(mktemp -d "$cache/steady.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root"/{bin,dev,proc,tmp}
cp /bin/busybox "$work/root/bin/"
cat >"$work/root/init" <<'I'
#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t tmpfs tmpfs /tmp; $B mount -t devtmpfs dev /dev; exec >/dev/console 2>&1
for i in 1 2 3; do
	$B dd if=/dev/zero bs=1M count=1 2>/dev/null | $B md5sum >/tmp/sum.$i
	($B seq 500 | $B sort -r | $B tail -n 1) >/tmp/tail.$i
done
set -- $($B cat /tmp/sum.* | $B sort -u) $($B cat /tmp/tail.* | $B sort -u)
[ "$*" = "b6d81b360a5672d80c27430f39153e2c - 1" ] && echo GUEST-OK || echo GUEST-WRONG "$@"
$B poweroff -f
I
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio -o -H newc 2>/dev/null) >"$work/initrd"
cat >"$work/vm.json" <<J
{"boot-source": {"kernel_image_path": "$bin/vmlinux", "initrd_path": "$work/initrd",
                 "boot_args": "console=ttyS0 quiet reboot=k panic=1"},
 "machine-config": {"vcpu_count": 1, "mem_size_mib": 128}}
J
cat >"$work/loop" <<'L'
# loop FC_VMM CONFIG SECONDS GUESTS, in the machine
end=$(($(date +%s) + $3))
one() {
	while [ "$(date +%s)" -lt "$end" ]; do
		out=$(timeout 600 "$1" --no-api --config-file "$2" 2>&1) && rc=0 || rc=$?
		case "$rc $out" in
		80*GUEST-OK*) echo ok ;;
		*) echo "bad $rc: $(echo "$out" | tail -n 3 | tr '\n' ' ')" ;;
		esac
	done
}
for g in $(seq "$4"); do one "$1" "$2" & done
wait
dmesg | grep -E "BUG|Oops|panic|stall|lockup|segfault" | grep -v "ommand line" | head
L
start=$SECONDS
rc=0
KVMHOST_TIMEOUT=$((seconds * 3 + 300)) "$root/integration/kvmhost" sh "$work/loop" "$bin/fc-vmm" "$work/vm.json" "$seconds" "$guests" >"$work/out" || rc=$?
grep -v '^ok$' "$work/out" | sort | uniq -c | sort -rn | head -n 20 || :
echo "status $rc, $(grep -c '^ok$' "$work/out") guests in order, $(grep -c '^bad' "$work/out") not, $((SECONDS - start)) s"
