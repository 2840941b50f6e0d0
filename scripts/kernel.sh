#!/usr/bin/env bash
# kernel.sh: builds bin/vmlinux from Debian's linux-source-6.1, guest/kernel/config.fragment and guest/kernel/*.patch, or takes
# $KERNEL. The result is kept in the cache under a hash of the source, the config, the patches and the compiler.
. "$(dirname "$0")/lib.sh"

if [ -n "${KERNEL:-}" ]; then
	[ -f "$KERNEL" ] || die "KERNEL=$KERNEL: no such file"
	say "taking $KERNEL"
	install_file "$KERNEL" "$bin/vmlinux"
	exit
fi

source=/usr/src/linux-source-6.1.tar.xz
fragment=$root/guest/kernel/config.fragment
patches=("$root"/guest/kernel/*.patch)
[ -f "$source" ] || die "$source is missing (make deps installs linux-source-6.1)"
version=$(dpkg-query -W -f '${Version}' linux-source-6.1)
hash=$( (echo "$version"; gcc --version | head -n 1; ld --version | head -n 1; cat "$fragment" "${patches[@]}" "$0") | sha256sum | cut -c 1-16)
kept=$cache/kernel/$hash
mkdir -p "$cache/kernel"
exec 8>"$cache/kernel/lock"
flock 8

# merge TREE: writes TREE/.config, and stops if a line of the fragment did not survive Kconfig.
merge() {
	make -C "$1" -s tinyconfig
	(cd "$1" && KCONFIG_CONFIG=.config scripts/kconfig/merge_config.sh -m .config "$fragment")
	make -C "$1" -s olddefconfig
	local line lost=0
	while IFS= read -r line; do
		case $line in
		CONFIG_*) grep -qxF "$line" "$1/.config" || { echo "not in force: $line"; lost=1; } ;;
		"# CONFIG_"*) ! grep -q "^$(cut -d ' ' -f 2 <<<"$line")=" "$1/.config" || { echo "not in force: $line"; lost=1; } ;;
		esac
	done <"$fragment"
	return $lost
}

# apply TREE: applies the patches. They make the boot cheaper, and one mends what later releases mend themselves, so that one which does
# not fit a later version of Debian's source is left out: make bench-check says what that costs, the tests of virtio-net what it breaks.
apply() {
	local p
	for p in "${patches[@]}"; do
		# Without fuzz: what is patched into a kernel must be where it was meant to be.
		if patch -d "$1" -p 1 -F 0 -f --dry-run <"$p"; then
			patch -d "$1" -p 1 -F 0 -f --no-backup-if-mismatch <"$p" || return
		else
			echo "${p##*/}" >>"$1/left-out"
		fi
	done
}

if [ ! -f "$kept/vmlinux" ]; then
	tree=$cache/kernel/tree
	rm -rf "$tree"
	mkdir -p "$tree"
	trap 'rm -rf "$tree"' EXIT
	log=$cache/kernel/build.log
	run "unpacking Linux $version" "$log" tar -xJf "$source" -C "$tree" --strip-components=1
	run "patching the guest kernel" "$log" apply "$tree"
	run "configuring the guest kernel" "$log" merge "$tree"
	# A fixed date, user and host: the same source gives the same file.
	run "building the guest kernel (about 5 minutes on 2 cores)" "$log" make -C "$tree" -j "$(nproc)" vmlinux \
		KBUILD_BUILD_TIMESTAMP=1970-01-01 KBUILD_BUILD_USER=fc KBUILD_BUILD_HOST=fc
	mkdir -p "$kept"
	cp "$tree/.config" "$kept/config"
	touch "$tree/left-out"
	cp "$tree/left-out" "$kept/left-out"
	strip -o "$kept/vmlinux.new" "$tree/vmlinux"
	mv "$kept/vmlinux.new" "$kept/vmlinux"
fi
while read -r left; do
	say "$left does not fit Linux $version and is left out; guest/kernel/$left says what it did"
done < <(cat "$kept/left-out" 2>/dev/null || :)
(cd "$root" && CGO_ENABLED=0 go run ./guest/kernel/compact "$kept/vmlinux" "$kept/vmlinux.small")
install_file "$kept/vmlinux.small" "$bin/vmlinux"
