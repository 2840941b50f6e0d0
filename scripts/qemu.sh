#!/usr/bin/env bash
# qemu.sh: unpacks QEMU 10 from Debian's backports into the cache, for the nested machine.
# Debian 12's QEMU 7.2 emulates nested SVM with faults that show when several guests run at once; see
# scripts/testbed-stress.sh. Nothing is installed and the machine's apt sources stay as they are: a private apt state, on the
# mirror and with the key of the bookworm source that the machine has. If that fails, the machine's own QEMU is used.
. "$(dirname "$0")/lib.sh"

target=$cache/qemu
[ ! -x "$target/usr/bin/qemu-system-x86_64" ] || exit 0
# With real KVM there is no nested machine.
! grep -qwE 'svm|vmx' /proc/cpuinfo || exit 0

state=$(mktemp -d "$cache/apt.XXXXXX")
trap 'rm -rf "$state"' EXIT
# shellcheck disable=SC2016 # apt expands it
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | head -n 1)
if [ -z "$mirror" ]; then
	say "no bookworm source to derive a backports mirror from: keeping the installed QEMU"
	exit 0
fi
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$key] $mirror bookworm-backports main" >"$state/sources.list"
mkdir -p "$state"/{lists/partial,archives/partial}
apt=(-q -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$state/lists"
	-o Dir::Cache="$state" -o APT::Sandbox::User=root)

# Only what lies in these three packages: the libraries are those that the installed QEMU has already, and its firmware too.
fetch() {
	set -e
	apt-get "${apt[@]}" update
	cd "$state/archives"
	apt-get "${apt[@]}" download qemu-system-{x86,common,data}
	for deb in *.deb; do dpkg -x "$deb" "$state/root"; done
	"$state/root/usr/bin/qemu-system-x86_64" --version
}
if (run "fetching QEMU from backports" "$cache/qemu.log" fetch); then
	rm -rf "$target"
	mv "$state/root" "$target"
else
	say "no QEMU from backports: keeping the installed one"
fi
