# shellcheck shell=bash
# Sourced by the other scripts: where things lie, and how progress is told.

set -euo pipefail
export LC_ALL=C.UTF-8
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fcshim # outlives the work tree; safe to delete
bin=$root/bin
mkdir -p "$cache" "$bin"

# A Go that scripts/deps.sh fetched comes before an older one of the system.
[ ! -x "$cache/go/bin/go" ] || export PATH="$cache/go/bin:$PATH"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# run WHAT LOG CMD…: runs a long step with its output in LOG, says every 20 s that it still works and how far it is
# (lines of LOG), and shows the log's end if it fails.
run() {
	local what=$1 log=$2 start=$SECONDS told=$SECONDS pid rc=0
	shift 2
	say "$what …"
	# A group of its own, so that an interrupt can end all of it; without the locks that this shell holds.
	set -m
	"$@" >"$log" 2>&1 </dev/null 8>&- &
	pid=$!
	set +m
	trap 'kill -- -'$pid' 2>/dev/null; exit 130' INT TERM
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.5
		[ $((SECONDS - told)) -lt 20 ] || { told=$SECONDS; say "$what: $((SECONDS - start)) s, $(wc -l <"$log") lines of log"; }
	done
	wait "$pid" || rc=$?
	trap - INT TERM
	if [ "$rc" != 0 ]; then
		tail -n 30 "$log" >&2
		die "$what: failed with status $rc after $((SECONDS - start)) s; all of it is in $log"
	fi
	say "$what: done in $((SECONDS - start)) s"
}

# install_file SRC DST: puts SRC at DST at one stroke, and not at all if DST is the same already (time stamps drive make).
install_file() {
	cmp -s "$1" "$2" && return
	cp "$1" "$2.new.$$"
	mv -f "$2.new.$$" "$2"
}
