#!/usr/bin/env bash
# stress.sh [PART…]: for hours what `make test` does for a minute. Parts, all of them if none is named, and how much they do:
#   cycles   CYCLES=500 containers, one after another: run, exec, stop, remove
#   crowd    CROWD=20 containers at a time
#   execs    EXECS=500 in one container
#   deaths   DEATHS=20 of containerd, of the shim, of fc-vmm, of the holder, at random moments; SEED=… repeats a choice of them
#   streams  STREAM_MIB=1024 through one container's output, byte-exact
#   api      API_SECONDS=600 of requests at random to fc-vmm; SEED=… repeats a choice of them
#   hostile  HOSTILE_SECONDS=600 of a bare-metal guest that writes malicious rings to every device; SEED=… repeats a choice of them
#   oversubscribe  OVERSUBSCRIBE=20 machines of 1 GiB, each of which fills 64 MiB and gives them back
# In each, nothing may be left behind, and the memory of those who live on must stay flat: the tests say what they measured.
# Where the machine is emulated, cycles and deaths are done in portions (PORTION=100 cycles, a quarter of the deaths), each in a
# machine of its own, and a portion that fails there is done once more, and told: the emulation has faults of its own. What is left
# behind, memory that grows, and a panic are no faults of an emulation's: those fail at once.
. "$(dirname "$0")/lib.sh"

tests=(cycles crowd execs deaths streams api hostile oversubscribe)
declare -A name=([cycles]=TestCycles [crowd]=TestTenAtOnce [execs]=TestManyExecs [deaths]=TestDeathsAtRandomMoments [streams]=TestMuchOutput [api]=TestFuzz
	[hostile]=TestHostileGuest [oversubscribe]=TestOversubscription)
declare -A package=([api]=integration/apitest [hostile]=cmd/fc-vmm [oversubscribe]=pkg/vmm) # else integration
cycles=${CYCLES:-500} deaths=${DEATHS:-20} portion=${PORTION:-100}
logs=$cache/logs failed=0 part_no=0 again=()
mkdir -p "$logs"
cd "$root"
work=$(mktemp -d "$cache/stress.XXXXXX")
trap 'rm -rf "$work"' EXIT
for pkg in integration "${package[@]}"; do CGO_ENABLED=0 go test -c -o "$work/$(basename "$pkg").test" "./$pkg"; done
export FC_BIN=$bin FC_BIN_DIR=$bin FC_KERNEL=$bin/vmlinux FC_REQUIRE_KVM=1

# once WHAT SECONDS LOG VARIABLE=VALUE…
once() {
	local test=${name[$1]} pkg=${package[$1]:-integration} seconds=$2 log=$3 rc=0 job
	shift 3
	: >"$log"
	(cd "$pkg" && env "$@" KVMHOST_TIMEOUT="$seconds" "$root/integration/kvmhost" "$work/$(basename "$pkg").test" -test.v -test.timeout "$((seconds - 30))s" -test.run "^$test\$") >"$log" 2>&1 &
	job=$!
	tail -n +1 -f --pid=$job "$log" 2>/dev/null | grep --line-buffered -E '^ *(--- |FAIL|panic:|[a-z]+_test\.go:[0-9]+: )' | cut -c 1-300 &
	wait $job || rc=$?
	wait
	return $rc
}

# part WHAT SECONDS VARIABLE=VALUE…: SECONDS is for an emulated machine.
part() {
	local what=$1 seconds=$2 log start=$SECONDS rc=0
	shift 2
	part_no=$((part_no + 1))
	log=$logs/stress-$what-$part_no.log
	say "$what, $* …"
	once "$what" "$seconds" "$log" "$@" || rc=$?
	if [ $rc != 0 ] && [ "$where" = nested ] && ! grep -qE 'left behind [0-9]|(heap|memory|goroutines|files|threads) grew|panic: |fatal error: ' "$log"; then
		again+=("$what $part_no")
		say "$what: status $rc in the nested machine ($log.first); once more, in a new one"
		mv "$log" "$log.first"
		rc=0
		once "$what" "$seconds" "$log" "$@" || rc=$?
	fi
	if [ $rc = 0 ]; then
		say "$what, $*: done in $((SECONDS - start)) s"
	else
		failed=1
		say "$what, $*: FAILED with status $rc (124: time limit, 125: the machine died); all of it is in $log"
	fi
}

where=$(integration/kvmhost --where)
# Only an emulated machine is used in portions.
[ "$where" = nested ] || portion=$cycles
[ $# -gt 0 ] || set -- "${tests[@]}"
for what in "$@"; do
	rm -f "$logs/stress-$what"*
	case $what in
	cycles)
		for ((done = 0; done < cycles; done += portion)); do
			n=$((cycles - done < portion ? cycles - done : portion))
			part cycles $((300 + 30 * n)) FC_CYCLES=$n
			say "cycles: $((done + n)) of $cycles"
		done
		;;
	crowd) part crowd 1200 FC_CROWD="${CROWD:-20}" ;;
	execs) part execs $((600 + 5 * ${EXECS:-500})) FC_EXECS="${EXECS:-500}" ;;
	deaths)
		seed=${SEED:-$((RANDOM + 1))}
		quarter=$deaths
		[ "$where" != nested ] || quarter=$(((deaths + 3) / 4))
		for ((done = 0; done < deaths; done += quarter)); do
			n=$((deaths - done < quarter ? deaths - done : quarter))
			part deaths $((600 + 180 * n)) FC_DEATHS=$n FC_SEED=$((seed + done))
			say "deaths: $((done + n)) of $deaths of each process"
		done
		;;
	hostile) part hostile $((600 + 2 * ${HOSTILE_SECONDS:-600})) FC_HOSTILE_SECONDS="${HOSTILE_SECONDS:-600}" FC_HOSTILE_SEED="${SEED:-$((RANDOM + 1))}" ;;
	oversubscribe) part oversubscribe $((600 + 60 * ${OVERSUBSCRIBE:-20})) FC_OVERSUBSCRIBE="${OVERSUBSCRIBE:-20}" ;;
	streams) part streams $((600 + 2 * ${STREAM_MIB:-1024})) FC_STREAM_MIB="${STREAM_MIB:-1024}" ;;
	api) part api $((300 + 2 * ${API_SECONDS:-600})) FC_API_SECONDS="${API_SECONDS:-600}" FC_SEED="${SEED:-$((RANDOM + 1))}" ;;
	*) die "$what is none of ${tests[*]}" ;;
	esac
done
say "$([ $failed = 0 ] && echo passed || echo FAILED), in $part_no parts$([ ${#again[@]} = 0 ] || printf '; tried twice: %s' "$(IFS=,; echo "${again[*]}")")"
exit $failed
