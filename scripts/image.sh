#!/usr/bin/env bash
# image.sh AGENT: builds bin/guest.img, the guest's read-only root: a static agent as /sbin/init, and mount points.
# The same agent gives the same image, byte for byte.
. "$(dirname "$0")/lib.sh"
agent=$1
tree=$(mktemp -d)
trap 'rm -rf "$tree" "$bin/guest.img.tmp"' EXIT

# What the agent mounts over (guest/setup), and what programs expect to exist.
mkdir -p "$tree"/{dev,etc,proc,run,sbin,sys,tmp}
install -m 755 "$agent" "$tree/sbin/init"
# libcontainer and Go's os/user want to know that uid 0 has a name.
echo 'root:x:0:0:root:/:/sbin/nologin' >"$tree/etc/passwd"
echo 'root:x:0:' >"$tree/etc/group"
chmod -R u=rwX,go=rX "$tree"

# Not compressed: pages of the agent go from the host's page cache to the guest as they are.
mkfs.erofs --quiet -T 0 -U 00000000-0000-0000-0000-000000000000 --all-root "$bin/guest.img.tmp" "$tree"
install_file "$bin/guest.img.tmp" "$bin/guest.img"
