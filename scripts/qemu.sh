#!/usr/bin/env bash
# qemu.sh: builds the QEMU of the nested machine into the cache: Debian's source of QEMU 10 (bookworm-backports), a few devices,
# and integration/testbed/qemu-vmrun.patch, without which nested guests hang or crash now and then.
# The machine's apt sources stay as they are: a private apt state, on the mirror and with the key of the bookworm source that the
# machine has. If that fails, the machine's own QEMU 7.2 is used; it works, most of the time.
. "$(dirname "$0")/lib.sh"

# With real KVM there is no nested machine, unless it is asked for.
! grep -qwE 'svm|vmx' /proc/cpuinfo || [ "${KVMHOST:-}" = nested ] || exit 0

version=10.0.2
sum=0901da33844a331bf8b3602b9c1fbd178e60b737c8e3ade678255bd090c9b9f1
testbed=$root/integration/testbed
hash=$( (echo $sum; cat "$testbed"/qemu-* "$0") | sha256sum | cut -c 1-16)
target=$cache/qemu
[ "$(cat "$target/hash" 2>/dev/null)" != "$hash" ] || exit 0
exec 8>"$cache/qemu.lock"
flock 8
[ "$(cat "$target/hash" 2>/dev/null)" != "$hash" ] || exit 0

work=$(mktemp -d "$cache/qemu.XXXXXX")
trap 'rm -rf "$work"' EXIT

fetch() {
	set -e
	local mirror uri name
	# shellcheck disable=SC2016 # apt expands it
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | head -n 1)
	[ -n "$mirror" ] || { echo "no bookworm source to derive a mirror from"; return 1; }
	mkdir -p "$work"/{lists/partial,archives/partial}
	echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" >"$work/sources.list"
	local apt=(-q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o Dir::State::lists="$work/lists" -o Dir::Cache="$work" -o APT::Sandbox::User=root)
	apt-get "${apt[@]}" update
	# Only upstream's part of the source package: 'URI' name size hash
	read -r uri name _ < <(apt-get "${apt[@]}" --print-uris --download-only source qemu | grep "_${version}[^ ]*\.orig\.tar\.xz ")
	uri=${uri//\'/}
	/usr/lib/apt/apt-helper download-file "$uri" "$work/$name" "SHA256:$sum"
	mkdir "$work/src"
	tar -xJf "$work/$name" -C "$work/src" --strip-components=1
	patch -d "$work/src" -p 1 <"$testbed/qemu-vmrun.patch"
	cp "$testbed/qemu-devices.mak" "$work/src/configs/devices/x86_64-softmmu/kvmhost.mak"
	# Debian 12's meson is too old for it; QEMU's configure takes these wheels.
	/usr/bin/python3 -m venv "$work/venv"
	"$work/venv/bin/pip" download -q --no-deps -d "$work/src/python/wheels" meson==1.5.0 pycotap==1.3.1
}

build() {
	set -e
	mkdir "$work/src/build"
	cd "$work/src/build"
	PATH=/usr/sbin:/usr/bin:/sbin:/bin ../configure --target-list=x86_64-softmmu --python=/usr/bin/python3 \
		--without-default-features --without-default-devices --with-devices-x86_64=kvmhost \
		--enable-tcg --enable-vhost-user --enable-fdt=system --disable-install-blobs --disable-docs --disable-tools
	ninja -j "$(nproc)" qemu-system-x86_64
	strip -o "$work/qemu-system-x86_64" qemu-system-x86_64
	"$work/qemu-system-x86_64" --version
}

if (run "fetching QEMU $version's source" "$cache/qemu-fetch.log" fetch) &&
	(run "building QEMU for the nested machine (about 2 minutes on 2 cores)" "$cache/qemu-build.log" build); then
	rm -rf "$target"
	mkdir -p "$target"
	mv "$work/qemu-system-x86_64" "$target/"
	echo "$hash" >"$target/hash"
else
	say "no QEMU $version: the nested machine will use the installed QEMU, and be less steady"
fi
