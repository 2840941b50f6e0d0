#!/usr/bin/env bash
# tools.sh: builds the programs that the tests and the demo drive, which use these and nothing that is installed, into
# bin/tools: containerd, ctr, containerd-shim-runc-v2 and runc; nerdctl; in cni/ the CNI plugins; in containerd-client/
# containerd's own client tests. Their versions are those of integration/tools/go.mod and integration/tools/nerdctl/go.mod;
# they are kept in the cache under a hash of both.
. "$(dirname "$0")/lib.sh"
module=$root/integration/tools
out=$bin/tools
hash=$( (go env GOVERSION; cat "$module"/go.{mod,sum} "$module"/nerdctl/go.{mod,sum} "$0") | sha256sum | cut -c 1-16)
kept=$cache/tools/$hash
mkdir -p "$cache/tools" "$out"
exec 8>"$cache/tools/lock"
flock 8

cni=(ipam/host-local main/{bridge,ipvlan,loopback,macvlan,ptp} meta/{firewall,portmap,tuning})

version() { go list -m -f '{{.Version}}' "$1"; }

# client_tests DIR: builds the client tests of the containerd module in DIR, from a copy with a few changes.
client_tests() {
	local copy=$tmp/containerd-src
	cp -r "$1" "$copy"
	chmod -R u+w "$copy"
	cp go.mod "$tmp/client.mod"
	cp go.sum "$tmp/client.sum"
	go mod edit -replace "github.com/containerd/containerd/v2=$copy" "$tmp/client.mod"
	# change FILE EXPRESSION: has sed change a file, and fails if that changes nothing.
	change() {
		cp "$copy/integration/$1" "$tmp/before"
		sed -i "$2" "$copy/integration/$1"
		! cmp -s "$tmp/before" "$copy/integration/$1" || die "$1: nothing in it is changed by $2"
		rm "$tmp/before"
	}
	# The flag that names other images than those of public registries is read before it is parsed: a variable takes its place.
	change images/image_list.go 's/initImages(\*imageListFile)/initImages(os.Getenv("TEST_IMAGE_LIST"))/'
	# In an emulated machine containerd takes longer to start than 2 or 4 s, and 100 times 7 MB through a terminal more than an hour.
	for file in client container_linux restart_monitor; do
		change client/${file}_test.go '/waitCtx, /s/[24]\*time\.Second/90*time.Second/'
	done
	change client/container_test.go 's/for i := range 100 {/for i := range map[bool]int{false: 100, true: 2}[os.Getenv("FC_KVMHOST") == "nested"] {/'
	CGO_ENABLED=0 run "building containerd's client tests" "$log" go test -c -trimpath -ldflags "-s -w" -modfile "$tmp/client.mod" \
		-o "$tmp/containerd-client/client.test" github.com/containerd/containerd/v2/integration/client
	install -D -m 644 -t "$tmp/containerd-client/testdata" "$1"/integration/client/testdata/*
	rm -r "$copy" "$tmp"/client.{mod,sum}
}

if [ ! -d "$kept" ]; then
	tmp=$(mktemp -d "$cache/tools/new.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	log=$cache/tools/build.log
	cd "$module"
	run "downloading the tools' modules" "$log" go mod download
	run "downloading nerdctl's modules" "$log" go -C nerdctl mod download
	containerd=$(version github.com/containerd/containerd/v2)
	runc=$(version github.com/opencontainers/runc)
	plugins=$(version github.com/containernetworking/plugins)
	v=github.com/containerd/containerd/v2/version
	# No CRI, and so no client of Kubernetes: neither the tests nor the demo use it yet.
	CGO_ENABLED=0 run "building containerd $containerd" "$log" go build -trimpath -o "$tmp/" \
		-tags "no_btrfs no_devmapper no_zfs" -ldflags "-s -w -X $v.Version=$containerd" \
		github.com/containerd/containerd/v2/cmd/containerd \
		github.com/containerd/containerd/v2/cmd/ctr \
		github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
	mkdir "$tmp/containerd-client"
	client_tests "$(go list -m -f '{{.Dir}}' github.com/containerd/containerd/v2)"
	CGO_ENABLED=1 run "building runc $runc" "$log" go build -trimpath -o "$tmp/" \
		-tags "seccomp netgo osusergo" -ldflags "-s -w -X main.version=${runc#v} -linkmode external -extldflags -static" \
		github.com/opencontainers/runc
	mkdir "$tmp/cni"
	CGO_ENABLED=0 run "building CNI plugins $plugins" "$log" go build -trimpath -o "$tmp/cni/" \
		-ldflags "-s -w -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$plugins" \
		"${cni[@]/#/github.com/containernetworking/plugins/plugins/}"
	cd nerdctl
	nerdctl=$(version github.com/containerd/nerdctl/v2)
	CGO_ENABLED=0 run "building nerdctl $nerdctl" "$log" go build -trimpath -o "$tmp/" \
		-ldflags "-s -w -X github.com/containerd/nerdctl/v2/pkg/version.Version=$nerdctl" github.com/containerd/nerdctl/v2/cmd/nerdctl
	chmod 755 "$tmp"
	mv "$tmp" "$kept"
fi
cd "$kept"
find . -type f -printf '%P\n' | while read -r f; do
	mkdir -p "$(dirname "$out/$f")"
	install_file "$f" "$out/$f"
done
