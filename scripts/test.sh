#!/usr/bin/env bash
# test.sh [PATTERN]: all tests, or those whose name matches PATTERN (go test -run).
# First, on this machine and with the race detector, what needs no KVM; then, in one KVM test machine, what does.
#   TEST_TIMEOUT=1200   seconds that the second part may take
# With `test.sh --in-machine DIR` it is the part of itself that runs in the machine.
. "$(dirname "$0")/lib.sh"

# Tests that find no KVM, kernel or image must fail, not be skipped: all of it has been built.
export FC_BIN=$bin FC_BIN_DIR=$bin

# What needs KVM shows it by the helper it asks.
kvm_packages() { grep -rlE 'vmmtest\.|harness\.Need|"FC_BIN"' --include='*_test.go' cmd guest integration pkg | xargs -n 1 dirname | sort -u; }

if [ "${1:-}" = --in-machine ]; then
	status=0
	while read -r pkg; do
		printf '=== package %s\n' "$pkg"
		(cd "$root/$pkg" && "$2/$(tr / - <<<"$pkg").test" -test.v -test.timeout 20m -test.run "${3:-.}") || status=1
	done <"$2/packages"
	exit "$status"
fi

cd "$root"
pattern=${1:-.}
work=$(mktemp -d "$cache/test.XXXXXX")
trap 'rm -rf "$work"' EXIT
logs=$cache/logs
mkdir -p "$logs"
failed=0

start=$SECONDS
say "tests without KVM, with the race detector …"
mapfile -t packages < <(go list ./... | grep -v '/integration$')
if go test -race -tags seccomp -timeout 10m -run "$pattern" "${packages[@]}" >"$logs/unit.log" 2>&1; then
	say "tests without KVM: passed, $(grep -c ^ok "$logs/unit.log") packages, $((SECONDS - start)) s"
else
	failed=1
	grep -vE '^ok|no test files' "$logs/unit.log" >&2 || :
	say "tests without KVM: FAILED, $((SECONDS - start)) s; all of it is in $logs/unit.log"
fi

start=$SECONDS
kvm_packages >"$work/packages"
say "building the tests of $(wc -l <"$work/packages") packages that need KVM …"
while read -r pkg; do
	# Static, so that a test can be a guest's init; the agent alone needs cgo.
	cgo=0
	[[ $pkg != guest/* ]] || cgo=1
	CGO_ENABLED=$cgo go test -c -tags seccomp -o "$work/$(tr / - <<<"$pkg").test" "./$pkg" ||
		die "the tests of $pkg do not build"
done <"$work/packages"
say "tests with KVM …"
rc=0
FC_REQUIRE_KVM=1 KVMHOST_TIMEOUT=${TEST_TIMEOUT:-1200} KVMHOST_LOG=$logs/console.log \
	integration/kvmhost "$root/scripts/test.sh" --in-machine "$work" "$pattern" >"$logs/kvm.log" &
job=$!
# What has ended so far, as it ends.
tail -n +1 -f --pid=$job "$logs/kvm.log" 2>/dev/null | grep --line-buffered -E '^(=== package|--- |FAIL|panic:)' &
wait $job || rc=$?
wait
[ $rc = 0 ] || failed=1
count() { grep -cE "^--- $1:" "$logs/kvm.log" || :; }
if [ $rc != 0 ]; then
	# The text of each failed test, then the whole in a file.
	awk '/^=== RUN|^=== package/{text=""} {text=text $0 "\n"} /^--- FAIL/{printf "%s", text}' "$logs/kvm.log" | tail -n 300 >&2
	say "tests with KVM: FAILED with status $rc (124: time limit, 125: the machine died); all of it is in $logs/kvm.log"
fi
say "tests with KVM: $((SECONDS - start)) s"
echo "$(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
exit $failed
