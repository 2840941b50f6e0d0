#!/usr/bin/env bash
# lint.sh: formatting, vet, staticcheck, shellcheck, tidy modules. Says everything that is wrong, then fails.
. "$(dirname "$0")/lib.sh"
cd "$root"

staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2
failed=()
check() { # NAME CMD…: fails if CMD does, or if it prints something and NAME ends in "?"
	local name=$1 start=$SECONDS out rc=0
	shift
	out=$("$@" 2>&1) || rc=$?
	if [ $rc != 0 ] || { [[ $name = *\? ]] && [ -n "$out" ]; }; then
		failed+=("${name%\?}")
		printf '%s\n' "$out" >&2
		say "${name%\?}: FAILED"
	else
		say "${name%\?}: ok, $((SECONDS - start)) s"
	fi
}

mapfile -t sources < <(git ls-files -co --exclude-standard -- '*.go')
mapfile -t scripts < <(git grep -lE --untracked '^#!.*\b(ba)?sh\b' -- scripts integration .ci)

check 'gofmt?' gofmt -l "${sources[@]}"
check 'go vet' go vet ./...
check 'go vet, sdk' go -C integration/sdk vet ./...
check staticcheck go run "$staticcheck" ./...
check shellcheck shellcheck -x -P SCRIPTDIR -e SC1091 "${scripts[@]}"
check 'go mod tidy' go mod tidy -diff
check 'go mod tidy, tools' go -C integration/tools mod tidy -diff
check 'go mod tidy, sdk' go -C integration/sdk mod tidy -diff
# With -e: tests of nerdctl import what no module proxy serves.
check 'go mod tidy, nerdctl' go -C integration/tools/nerdctl mod tidy -e -diff
check 'go mod verify' go mod verify

[ ${#failed[@]} = 0 ] || die "failed: ${failed[*]}"
