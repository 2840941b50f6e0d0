#!/usr/bin/env bash
# tools.sh: builds containerd, ctr, containerd-shim-runc-v2 and runc at the versions of integration/tools/go.mod into
# bin/tools. The tests and the demo use these and nothing that is installed. Kept in the cache under a hash of go.sum.
. "$(dirname "$0")/lib.sh"
module=$root/integration/tools
out=$bin/tools
hash=$( (go env GOVERSION; cat "$module/go.mod" "$module/go.sum" "$0") | sha256sum | cut -c 1-16)
kept=$cache/tools/$hash
mkdir -p "$cache/tools" "$out"
exec 8>"$cache/tools/lock"
flock 8

if [ ! -d "$kept" ]; then
	tmp=$(mktemp -d "$cache/tools/new.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	log=$cache/tools/build.log
	cd "$module"
	go mod download
	containerd=$(go list -m -f '{{.Version}}' github.com/containerd/containerd/v2)
	runc=$(go list -m -f '{{.Version}}' github.com/opencontainers/runc)
	v=github.com/containerd/containerd/v2/version
	# No CRI, and so no client of Kubernetes: neither the tests nor the demo use it yet.
	CGO_ENABLED=0 run "building containerd $containerd" "$log" go build -trimpath -o "$tmp/" \
		-tags "no_btrfs no_devmapper no_zfs" -ldflags "-s -w -X $v.Version=$containerd" \
		github.com/containerd/containerd/v2/cmd/containerd \
		github.com/containerd/containerd/v2/cmd/ctr \
		github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
	CGO_ENABLED=1 run "building runc $runc" "$log" go build -trimpath -o "$tmp/" \
		-tags "seccomp netgo osusergo" -ldflags "-s -w -X main.version=${runc#v} -linkmode external -extldflags -static" \
		github.com/opencontainers/runc
	chmod 755 "$tmp"
	mv "$tmp" "$kept"
fi
for f in "$kept"/*; do install_file "$f" "$out/${f##*/}"; done
