#!/usr/bin/env bash
# deps.sh: what building and testing need on Debian 12: packages, and a Go of the version in go.mod.
# Quick when all is there. Hosts are never named: packages come from the machine's own sources, Go from its GOPROXY.
. "$(dirname "$0")/lib.sh"

packages=(
	gcc libc6-dev libseccomp-dev make pkg-config git                            # the agent and runc, with cgo
	linux-source-6.1 bc bison flex libelf-dev libssl-dev perl xz-utils cpio kmod # the guest's kernel
	erofs-utils e2fsprogs busybox-static                                        # images
	iptables iproute2                                                           # what CNI plugins and nerdctl call
	qemu-system-x86 qemu-system-common qemu-system-data seabios                 # the nested machine
	libglib2.0-dev libfdt-dev zlib1g-dev ninja-build patch python3-venv         # its own QEMU
	ca-certificates curl shellcheck unzip
)

missing=()
for p in "${packages[@]}"; do
	[ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null)" = "ii " ] || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
	[ "$(id -u)" = 0 ] || die "as root, install: ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	run "updating the package lists" "$cache/apt.log" apt-get -q update
	run "installing ${#missing[@]} packages: ${missing[*]}" "$cache/apt.log" \
		apt-get -q -y --no-install-recommends install "${missing[@]}"
fi

"$root/scripts/go.sh"
"$root/scripts/qemu.sh"
