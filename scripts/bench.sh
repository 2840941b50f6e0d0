#!/usr/bin/env bash
# bench.sh [OPTION…]: runs the benchmarks in KVM test machines and tells what they say; integration/bench/report has the options.
. "$(dirname "$0")/lib.sh"
cd "$root"
export CGO_ENABLED=0
exec go run ./integration/bench/report -root "$root" "$@"
