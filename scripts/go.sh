#!/usr/bin/env bash
# go.sh: sees to a Go that is at least as new as go.mod says. Where the machine's is older or missing, Debian's golang-go
# fetches the toolchain as the module golang.org/toolchain, the way Go itself does it; Go checks it against the checksum
# database, and this script against the sum below.
. "$(dirname "$0")/lib.sh"

want=$(awk '$1 == "go" {print $2}' "$root/go.mod")
# go.mod's version needs its own line here: `go mod download -json golang.org/toolchain@v0.0.1-goX.linux-amd64` tells the sum.
declare -A sums=([1.26.6]="h1:owmNw4SPM9h46FGOeGJVUWzFEEDSmO6g7gAtWoXp28s=")

if have=$(cd / && GOTOOLCHAIN=local go env GOVERSION 2>/dev/null); then
	have=${have#go}
	have=${have%% *}
	if [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ]; then exit; fi
	say "Go $have is older than $want"
else
	[ "$(id -u)" = 0 ] || die "as root, install golang-go, or any Go >= $want"
	DEBIAN_FRONTEND=noninteractive run "installing golang-go, to fetch Go $want with" "$cache/apt.log" \
		apt-get -q -y --no-install-recommends install golang-go
fi
[ -n "${sums[$want]:-}" ] || die "no sum for Go $want in scripts/go.sh: install Go >= $want"

tmp=$(mktemp -d "$cache/go.new.XXXXXX")
trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT
cd "$tmp"
echo "module fetch" >go.mod
export GOPATH=$tmp/path GOTOOLCHAIN=local GOFLAGS=-modcacherw
run "fetching Go $want" "$cache/go.json" go mod download -json "golang.org/toolchain@v0.0.1-go$want.linux-amd64"
grep -qF "\"Sum\": \"${sums[$want]}\"" "$cache/go.json" || die "Go $want is not what it should be: see $cache/go.json"
dir=$(sed -n 's/^\t*"Dir": "\(.*\)",$/\1/p' "$cache/go.json")
# A module's zip carries no modes.
chmod -R u+rwX,go+rX "$dir"
chmod 755 "$dir"/bin/* "$dir"/pkg/tool/*/*
rm -rf "$cache/go"
mv "$dir" "$cache/go"
"$cache/go/bin/go" version >&2
