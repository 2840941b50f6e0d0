#!/usr/bin/env bash
# test-containerd.sh [PATTERN]: containerd's own client integration tests, or those whose name matches PATTERN, with a runtime:
# ours, or the one that RUNTIME names; with io.containerd.runc.v2 they show what fails in this environment anyway. They run in KVM
# test machines, in chunks of CHUNK (20) tests with LIMIT (600) seconds each, since what ends a machine ends all that it still had to run.
# integration/containerd-suite.txt says which failures are known, and why; any other is this script's failure, too.
# With `--in-machine WORK TESTS LIMIT` it is the part of itself that runs in the machine.
. "$(dirname "$0")/lib.sh"
suite=$bin/tools/containerd-client

if [ "${1:-}" = --in-machine ]; then
	work=$2 tests=$3 limit=$4
	# The tests' containerd has its root and its state at fixed places: they get file systems of their own, which can hold the
	# upper layer of an overlay, in a mount namespace that nobody else sees.
	if [ -z "${FC_UNSHARED:-}" ]; then
		FC_UNSHARED=1 exec unshare --mount --propagation slave "$0" "$@"
	fi
	# The tree and the work folder may lie below these places, and are put back; so may FC_SCRATCH, hence relative names.
	cd "$FC_SCRATCH"
	places=(/var/lib /tmp /usr/local) needed=("$root" "$work")
	for n in "${!needed[@]}"; do
		mkdir "needed-$n"
		mount --no-canonicalize --rbind "${needed[n]}" "./needed-$n"
	done
	for place in "${places[@]}"; do
		mkdir "${place##*/}"
		chmod 1777 "${place##*/}"
		mount --no-canonicalize --bind "./${place##*/}" "$place"
	done
	for n in "${!needed[@]}"; do
		[ ! "${needed[n]}" -ef "./needed-$n" ] || continue
		mkdir -p "${needed[n]}"
		mount --no-canonicalize --rbind "./needed-$n" "${needed[n]}"
	done
	mount --make-rshared /
	# A shim that a test copies elsewhere finds the rest where `make install` puts it.
	mkdir -p /usr/local/bin /usr/local/share/containerd-shim-fc-v2
	ln -s "$bin/fc-vmm" /usr/local/bin
	ln -s "$bin"/{vmlinux,guest.img} /usr/local/share/containerd-shim-fc-v2
	export PATH=$bin:$bin/tools:$PATH TEST_RUNTIME=$FC_SUITE_RUNTIME
	# Tests of runc's own behaviour, which another runtime is not asked for.
	[ "$TEST_RUNTIME" = io.containerd.runc.v2 ] || export RUNC_FLAVOR=none
	cd "$suite"
	exec "$work/clientsuite" ./client.test -test.root -test.v -test.parallel 1 -test.timeout "$((limit - 45))s" -test.run "$tests"
fi

cd "$root"
pattern=${1:-.} runtime=${RUNTIME:-io.containerd.fc.v2} chunk=${CHUNK:-20} limit=${LIMIT:-600}
work=$(mktemp -d "$cache/suite.XXXXXX")
trap 'rm -rf "$work"' EXIT
logs=$cache/logs/containerd-suite-${runtime#io.containerd.}
mkdir -p "$logs"
rm -f "$logs"/*
CGO_ENABLED=0 go build -o "$work/clientsuite" ./integration/clientsuite

# -test.short keeps the tests from starting a containerd.
(cd "$suite" && ./client.test -test.short -test.list "$pattern" 2>/dev/null) | grep ^Test >"$work/pending" ||
	die "no test matches $pattern"
say "$(wc -l <"$work/pending") tests with $runtime"

# run_pending runs the tests in $work/pending, and notes what ended so: "FAIL NAME". A test that was cut off counts as failed.
n=0
run_pending() {
	local log start rc
	while [ -s "$work/pending" ]; do
		n=$((n + 1))
		log=$logs/$n.log start=$SECONDS rc=0
		head -n "$chunk" "$work/pending" >"$work/chunk"
		FC_SUITE_RUNTIME=$runtime KVMHOST_TIMEOUT=$limit KVMHOST_LOG=$logs/$n.console integration/kvmhost "$root/scripts/test-containerd.sh" \
			--in-machine "$work" "^($(paste -sd '|' "$work/chunk"))\$" "$limit" >"$log" 2>&1 || rc=$?
		sed -nE 's/^ *--- (PASS|FAIL|SKIP): ([^ ]+) \(.*/\1 \2/p' "$log" >"$work/now"
		# What had begun when all was cut off is the culprit; what had not begun runs in the next machine.
		awk '/^=== (RUN|CONT) /{began[$3]=1} /^=== PAUSE /{delete began[$3]} / *--- (PASS|FAIL|SKIP): /{delete began[$3]}
			END{for (t in began) print "FAIL", t}' "$log" >"$work/cut"
		if ! grep -qE '^(PASS|FAIL)$' "$log" && [ ! -s "$work/now" ] && [ ! -s "$work/cut" ]; then
			tail -n 30 "$log" >&2
			die "no test ran, status $rc; all of it is in $log"
		fi
		cat "$work/now" "$work/cut" >>"$work/ended"
		awk '{sub("/.*", "", $2); print $2}' "$work/now" "$work/cut" | sort -u >"$work/done"
		# A chunk that ended by itself is done, even if some of its tests never showed.
		! grep -qE '^(PASS|FAIL)$' "$log" || cat "$work/chunk" >>"$work/done"
		grep -vxFf "$work/done" "$work/pending" >"$work/rest" || :
		mv "$work/rest" "$work/pending"
		say "machine $n: $(grep -c '^PASS [^/]*$' "$work/now" || :) passed, $(cat "$work/now" "$work/cut" | grep -c '^FAIL [^/]*$' || :) failed," \
			"status $rc, $((SECONDS - start)) s; $(wc -l <"$work/pending") tests to go"
	done
}

# judge lists in $work/failed what failed, and in $work/new what of it nobody expects.
judge() {
	# A test that failed only because of a subtest is not named beside it.
	sort -u "$work/ended" | awk '$1 == "FAIL" {failed[$2] = 1} END {
		for (t in failed) {parent = t; while (sub("/[^/]*$", "", parent)) inner[parent] = 1}
		for (t in failed) if (!(t in inner)) print t}' | sort >"$work/failed"
	comm -23 "$work/failed" "$work/known" >"$work/new"
}

: >"$work/ended"
run_pending
# Of the known ones, those of kind "env" fail with every runtime, those of kind "vm" with ours, and those of kind "slow" with ours in
# a nested machine, where a boot takes seconds.
kinds='env' nested=
! grep -q '^kvmhost: nested machine' "$logs/1.log" || nested=1
[ "$runtime" != io.containerd.fc.v2 ] || kinds="env|vm${nested:+|slow}"
sed -nE "s/^([^# ]+) +($kinds) .*/\1/p" integration/containerd-suite.txt | sort >"$work/known"
judge
# The emulation has faults of its own: what failed in a nested machine gets one more chance in a new one, and is told.
if [ -n "$nested" ] && [ -s "$work/new" ]; then
	say "once more, in a new machine: $(paste -sd ' ' "$work/new")"
	sed 's|/.*||' "$work/new" | sort -u >"$work/pending"
	grep -vEf <(sed 's|.*| &(/\|$)|' "$work/pending") "$work/ended" >"$work/kept" || :
	mv "$work/kept" "$work/ended"
	run_pending
	judge
fi

for what in failed new; do
	[ ! -s "$work/$what" ] || { echo "$what:"; sed 's/^/  /' "$work/$what"; }
done
grep -E '^PASS ' "$work/ended" | cut -d ' ' -f 2 | sort -u | comm -12 - "$work/known" | sed 's/^/listed as failing, but passed: /'
top() { grep -cE "^$1 [^/]+\$" "$work/ended" || :; }
echo "$runtime: $(top PASS) passed, $(top FAIL) failed ($(wc -l <"$work/failed") cases, $(wc -l <"$work/new") not listed), $(top SKIP) skipped"
say "the logs are in $logs"
[ ! -s "$work/new" ]
