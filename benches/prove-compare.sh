#!/usr/bin/env bash
# Shows that `vswitch bench compare` tells a change from noise, as root, on a quiet machine and with a load beside it: the same
# build twice is no change, the same build slowed down by 10 % on the frame path is a regression.
#   benches/prove-compare.sh DIRECTORY
# CYCLES: what a frame costs more in the slow runs, in cycles of the time stamp counter (12: 10 % of a warm frame's 122).
# VSWITCH: a binary built with the feature `burden`; without it one is built. RUNS: rounds of each run.
set -euo pipefail
out=${1:?usage: benches/prove-compare.sh DIRECTORY}
mkdir -p "$out"
out=$(cd "$out" && pwd)
[ -z "${VSWITCH:-}" ] || VSWITCH=$(realpath "$VSWITCH")
cd "$(dirname "$0")/.."
if [ -z "${VSWITCH:-}" ]; then
    cargo build --locked --release -p switch-cli --features burden
    VSWITCH=${CARGO_TARGET_DIR:-target}/release/vswitch
fi
strings=$(grep -c VSWITCH_BURDEN_CYCLES "$VSWITCH" || true)
[ "$strings" -gt 0 ] || { echo "prove-compare.sh: $VSWITCH was built without --features burden" >&2; exit 1; }
cycles=${CYCLES:-12} runs=${RUNS:-10}

load=
trap '[ -z "$load" ] || kill "$load"' EXIT

# measure NAME CYCLES
measure() {
    rm -rf "${out:?}/$1"
    VSWITCH_BURDEN_CYCLES=$2 "$VSWITCH" bench path --runs "$runs" --time 1 --out "$out/$1" >"$out/$1.log" 2>&1 ||
        { cat "$out/$1.log" >&2; exit 1; }
}
# judge WANTED OLD NEW: the exit status that compare must have; an improvement is always wrong here.
judge() {
    local status=0
    "$VSWITCH" bench compare "$out/$2" "$out/$3" | tee "$out/$2-$3.md" || status=$?
    if [ "$status" -ne "$1" ] || grep -q '| improvement' "$out/$2-$3.md"; then
        echo "prove-compare.sh: WRONG: $2 against $3: exit status $status, wanted $1 and no improvement" >&2
        failed=1
    fi
}
failed=0
for beside in quiet loaded; do
    if [ "$beside" = loaded ]; then
        sh -c 'while :; do :; done' &
        load=$!
    fi
    echo "== $beside: the same build twice, and with $cycles cycles more per frame"
    measure "$beside-one" 0
    measure "$beside-two" 0
    measure "$beside-slow" "$cycles"
    judge 0 "$beside-one" "$beside-two"
    judge 1 "$beside-one" "$beside-slow"
done
[ "$failed" -ne 0 ] || echo "== compare was right all four times; the comparisons are in $out/*.md"
exit "$failed"
