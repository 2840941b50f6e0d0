#!/usr/bin/env bash
# test.sh [PATTERN]: all tests, or those whose name matches PATTERN (go test -run).
# First, on this machine and with the race detector, what needs no KVM; then, in KVM test machines, what does. Where these are
# nested, the emulation has faults of its own: there, and once, a new machine repeats what failed or was cut off, and says so. Where one package
# or two fail that need no KVM, other than by a race or a panic, they are repeated by themselves, and named, too.
# With `test.sh --in-machine DIR GROUP …` it is the part of itself that runs in the machine.
. "$(dirname "$0")/lib.sh"

# Each group runs in a machine of its own, in a time that it may take there, in seconds.
declare -A limit=([parts]=1800 [containers-1]=1800 [containers-2]=1800 [runc]=600 [crowd]=420)
crowd='^TestTenAtOnce$' # ten VMs at once weigh on an emulated machine: they run by themselves
# What these claim must hold for runc, too, and they do not ask it themselves: they run once more, with runc. TestContainerdDeathAtStart
# is not among them: at some moments runc leaves an empty cgroup behind.
runc='^Test(Exec|ExecEndsWithContainer|Snapshot|BindMounts|OutputAndStatus|NoSuchCommand|StdinThrough|StdinIn|StdinUnread|StdoutOut|Terminal|ResizeByClient|Kill|KillPaused|PauseAndResume|NeverStarted|Pids|Update|OutOfMemory|SpecByCtr|SpecWhole|Namespaces|BinaryLogger|LoggerOfExec|FileLog|Deaths|RunSeesDeath|ContainerdDeath|Cycles|ManyExecs)$'
# A sample of containerd's own client tests; `make test-containerd` runs them all.
sample='^Test(Container(Start|Exec|Kill|CloseIO|PTY|Hook|Metrics|AttachProcess)|TaskForceDelete|DeleteContainerExecCreated|DaemonRestart|ShimSockLength|RuntimeInfo)$'

# What needs the KVM machine shows it by the helper it asks.
kvm_packages() { grep -rlE 'vmmtest\.|harness\.Need|needMachine\(' --include='*_test.go' cmd guest integration pkg | xargs -n 1 dirname | sort -u; }

if [ "${1:-}" = --in-machine ]; then
	work=$2 group=$3 end=$((SECONDS + $4)) most=$4
	# Where there are several packages, one whose test hangs leaves the others their time.
	[ "$(wc -l <"$work/$group")" = 1 ] || most=$((most / 2))
	# Tests that find no KVM, kernel or image must fail, not be skipped: all of it has been built.
	export FC_BIN=$bin FC_BIN_DIR=$bin FC_KERNEL=$bin/vmlinux FC_REQUIRE_KVM=1
	[ "$group" != runc ] || export FC_RUNTIME=io.containerd.runc.v2
	# The tests' limits suit a nested machine with the CPUs for itself; two run at once, beside whatever else there is.
	[ "${FC_KVMHOST:-}" != nested ] || export FC_SLOW=${FC_SLOW:-2}
	status=0
	while read -r pkg; do
		# What an earlier machine saw pass: all of a package, or some of its tests.
		skip=$(awk -v pkg="$pkg" '$1 == pkg {print $2}' "$work/$group.passed")
		[ "$skip" != all ] || continue
		printf '=== group %s, package %s\n' "$group" "$pkg"
		left=$((end - SECONDS - 30))
		if [ $left -lt 10 ]; then
			echo "FAIL: no time left"
			status=1
			continue
		fi
		# A test that hangs says where, before the machine's own time is up.
		if (cd "$root/$pkg" && "$work/$(tr / - <<<"$pkg").test" -test.v -test.timeout $((left < most ? left : most))s \
			-test.run "$(cat "$work/$group.run")" -test.skip "^($skip)\$"); then
			printf '=== passed: group %s, package %s\n' "$group" "$pkg"
		else
			status=1
		fi
	done <"$work/$group"
	exit "$status"
fi

cd "$root"
pattern=${1:-.}
work=$(mktemp -d "$cache/test.XXXXXX")
trap 'rm -rf "$work"' EXIT
logs=$cache/logs
mkdir -p "$logs"
failed=0

# unit WHAT LOG PACKAGE…: tests of packages on this machine; the packages that fail go to $work/unit.
unit() {
	local what=$1 log=$2 start=$SECONDS
	shift 2
	if (run "$what" "$log" go test -race -tags seccomp -timeout 10m -run "$pattern" "$@"); then
		say "$what: passed, $(grep -c ^ok "$log") packages, $((SECONDS - start)) s"
		return
	fi
	grep -vE '^ok|no test files' "$log" >&2 || :
	awk '$1 == "FAIL" && NF > 1 { print $2 }' "$log" >"$work/unit"
	say "$what: FAILED, $((SECONDS - start)) s; all of it is in $log"
	return 1
}

mapfile -t packages < <(go list ./... | grep -v '/integration$')
if ! unit "tests without KVM, with the race detector" "$logs/unit.log" "${packages[@]}"; then
	mapfile -t packages <"$work/unit"
	# A package or two that took too long beside all the others have one more chance by themselves, and are told. Races and panics have none.
	if [ ${#packages[@]} -eq 0 ] || [ ${#packages[@]} -gt 2 ] || grep -qE 'DATA RACE|^panic: |\[(build|setup) failed\]' "$logs/unit.log" ||
		! unit "once more, by themselves: ${packages[*]}" "$logs/unit-again.log" -p 1 "${packages[@]}"; then
		failed=1
	fi
fi

kvm_packages | grep -v '^integration$' >"$work/parts"
for group in containers-1 containers-2 runc crowd; do echo integration >"$work/$group"; done
# shellcheck disable=SC2317 # run calls it
build() {
	local pkg cgo
	while read -r pkg; do
		# Static, so that a test can be a guest's init; the agent alone needs cgo.
		cgo=0
		[[ $pkg != guest/* ]] || cgo=1
		echo "$pkg"
		# In its folder: some are modules of their own.
		CGO_ENABLED=$cgo go -C "$pkg" test -c -tags seccomp -o "$work/$(tr / - <<<"$pkg").test" . || return
	done < <(cat "$work/parts" "$work/crowd")
}
run "building the tests that need KVM" "$logs/build.log" build

# Every second test of containers goes to the other group, which halves the time where two machines run at once.
echo "$pattern" >"$work/parts.run"
echo "$crowd" >"$work/crowd.run"
"$work/integration.test" -test.list "$pattern" >"$work/all" || die "the tests' program of integration does not list its tests"
grep '^Test' "$work/all" >"$work/list" || [ "$pattern" != . ] || die "the tests' program of integration lists no test"
[ "$pattern" != . ] || sed -i "/$crowd/d" "$work/list"
any() { echo "^($(paste -sd '|' -))\$"; }
for n in 1 2; do sed -n "$n~2p" "$work/list" | any >"$work/containers-$n.run"; done
{ grep -E "$runc" "$work/list" || :; } | any >"$work/runc.run"

count() { cat "$logs"/kvm-*.log | grep -cE "^--- $1:" || :; }

# tell passes on what is read, and says whose lines follow where somebody else has spoken: two groups run at once.
: >"$work/speaker"
tell() {
	local line whose=
	while IFS= read -r line; do
		if [[ $line = '=== '* ]]; then
			whose=$line
			echo "$whose" >"$work/speaker"
		elif [ "$whose" != "$(<"$work/speaker")" ]; then
			echo "$whose" >"$work/speaker"
			line=$whose$'\n'$line
		fi
		printf '%s\n' "$line"
	done
}

# in_machine GROUP LOG: runs those of a group's tests that have not passed; what has ended is told as it ends.
in_machine() {
	local group=$1 log=$2 rc=0 job
	: >"$log"
	KVMHOST_TIMEOUT=${limit[$group]} KVMHOST_LOG=$logs/console-$group.log integration/kvmhost \
		"$root/scripts/test.sh" --in-machine "$work" "$group" "${limit[$group]}" >"$log" 2> >(tee "$log.err" >&2) &
	job=$!
	tail -n +1 -f --pid=$job "$log" 2>/dev/null | grep --line-buffered -E '^(=== group|--- |FAIL|panic:)' | tell &
	wait $job || rc=$?
	wait
	return $rc
}

# passed LOG: for each package what a log saw pass, for the next machine: all, or names with a bar before each. A package that failed otherwise than
# by a test has nothing that passed.
passed() {
	awk 'function tell() { if (pkg != "" && (whole || failed || open != "")) print pkg, (whole ? "all" : names); pkg = names = open = ""; whole = failed = 0 }
		/^=== group / { tell(); pkg = $NF }
		/^=== RUN   [^\/]*$/ { open = $3 }
		/^--- (PASS|FAIL|SKIP): [A-Za-z0-9_]+ \([0-9.]+s\)$/ { if ($3 == open) open = ""; if ($2 == "PASS:") names = names "|" $3; if ($2 == "FAIL:") failed = 1 }
		/^=== passed: group / { whole = 1 }
		END { tell() }' "$1"
}

# run_group GROUP: its status is that of the group's tests.
run_group() {
	local group=$1 start=$SECONDS rc=0 log=$logs/kvm-$1.log
	say "tests with KVM: $group …"
	: >"$work/$group.passed"
	in_machine "$group" "$log" || rc=$?
	# An emulated CPU has faults of its own: what failed there, or was cut off, gets one more chance in a new machine, and is told.
	if [ $rc != 0 ] && [ "$where" = nested ]; then
		passed "$log" >"$work/$group.passed"
		say "tests with KVM: $group: status $rc in the nested machine; once more, in a new one: $(
			grep -oE '^--- FAIL: [A-Za-z0-9_]+' "$log" | sed 's/.*: //' | paste -sd ' ' -) and what did not run"
		sed -i 's/^--- FAIL:/--- AGAIN:/' "$log"
		rc=0 log=$logs/kvm-$group-again.log
		in_machine "$group" "$log" || rc=$?
	fi
	if [ $rc != 0 ]; then
		# The text of each failed test, then the whole in a file.
		awk '/^=== RUN +[^\/]*$|^=== group/{text=""} {text=text $0 "\n"} /^--- FAIL/{printf "%s", text}' "$log" | tail -n 300 >&2
		say "tests with KVM: $group: FAILED with status $rc (124: time limit, 125: the machine died); all of it is in $log"
	fi
	say "tests with KVM: $group: $((SECONDS - start)) s"
	return $rc
}

run_suite() {
	local start=$SECONDS rc=0
	say "a sample of containerd's client tests …"
	scripts/test-containerd.sh "$sample" || rc=$?
	say "a sample of containerd's client tests: $((SECONDS - start)) s"
	return $rc
}

# One nested machine keeps one CPU busy, so two run at once. Real KVM is this host's, where tests would see each other's processes.
rm -f "$logs"/kvm-*.log
where=$(integration/kvmhost --where)
lanes=1
[ "$where" != nested ] || lanes=$(nproc)
[ "$lanes" -le 2 ] || lanes=2
jobs=(containers-1 containers-2 parts)
grep -qx '^()\$' "$work/runc.run" || jobs+=(runc)
[ "$pattern" != . ] || jobs+=(crowd suite)
running=0
for job in "${jobs[@]}"; do
	if [ $running = "$lanes" ]; then
		wait -n || failed=1
		running=$((running - 1))
	fi
	case $job in
	suite) run_suite & ;;
	*) run_group "$job" & ;;
	esac
	running=$((running + 1))
done
while [ $running -gt 0 ]; do
	wait -n || failed=1
	running=$((running - 1))
done
echo "$(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
exit $failed
