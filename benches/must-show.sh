#!/usr/bin/env bash
# Every table of docs/performance.md, as root on an otherwise quiet machine:
#   benches/must-show.sh DIRECTORY
# writes NAME.json (every value of every round) and NAME.md per table, and all tables together as must-show.md.
# PROFILE=dev takes the development build (to try the script, not to publish).
# QUICK=1 makes one short round of each (to see that everything runs).
set -euo pipefail
out=${1:?usage: benches/must-show.sh DIRECTORY}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
    echo "must-show.sh: it makes network namespaces and TAPs; run it as root" >&2
    exit 1
fi
for program in ip ping iperf3; do
    command -v "$program" >/dev/null || { echo "must-show.sh: install iproute2 iputils-ping iperf3" >&2; exit 1; }
done
for program in vde_switch:vde2 ovs-vswitchd:openvswitch-switch perf:linux-perf valgrind:valgrind \
    dpdk-testpmd:"dpdk-dev librte-net-virtio23 librte-net-vhost23 librte-mempool-ring23"; do
    command -v "${program%%:*}" >/dev/null ||
        echo "must-show.sh: without ${program%%:*} a part is left out: apt-get install ${program##*:}" >&2
done
[ -e /usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk ] ||
    echo "must-show.sh: without Open vSwitch with DPDK a part is left out: apt-get install openvswitch-switch-dpdk" >&2
profile=${PROFILE:-release}
cargo build --locked --profile "$profile" -p switch-cli -p vswitch-benches
bin=${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")

quick=()
[ -z "${QUICK:-}" ] || quick=(--pairs 1 --seconds 1)
# table NAME ARGUMENTS...: the last of an argument given twice counts.
table() {
    local name=$1
    shift
    echo "== $name" >&2
    "$bin/e2e" "$@" "${quick[@]}" --json "$out/$name.json" --markdown "$out/$name.md" >/dev/null ||
        failed=1
}
failed=0
begin=$SECONDS
table tap-loop --scenario tap --only loop,loop-busy,vswitch,vswitch-adaptive,vswitch-busy --pairs 9 --seconds 1
table tap-others --scenario tap --only vswitch,vswitch-adaptive,bridge,veth,vde,ovs,ovs-tso --pairs 5 --seconds 1
table cost --scenario cost --pairs 3 --seconds 1
table packet-veth --scenario packet-veth --pairs 7 --seconds 1
table packet-xdp --scenario packet-xdp --pairs 7 --seconds 1
table packet-tap --scenario packet-tap --pairs 9 --seconds 1
table uplink --scenario uplink --pairs 5 --seconds 1
table nat --scenario nat --pairs 5 --seconds 1
table many --scenario many
table idle --scenario idle --only vswitch-adaptive
table vhost-pmd --scenario vhost-pmd --pairs 5 --seconds 1
table vhost-gso --scenario vhost-gso --pairs 9 --seconds 1
table vhost-gap --scenario vhost-gap --pairs 5
table vhost-idle --scenario vhost-idle --seconds 30
echo "== core-cost" >&2
rounds=9
[ -z "${QUICK:-}" ] || rounds=2
"$bin/core-cost" --seconds 2 --rounds "$rounds" --json "$out/core-cost.json" --markdown "$out/core-cost.md" >/dev/null ||
    failed=1
for name in tap-loop tap-others cost packet-veth packet-xdp packet-tap uplink nat vhost-pmd vhost-gso vhost-idle vhost-gap core-cost idle many; do
    printf '## %s\n\n' "$name"
    cat "$out/$name.md" || failed=1
    echo
done >"$out/must-show.md"
echo "must-show.sh: $((SECONDS - begin)) s; the tables are in $out/must-show.md" >&2
exit "$failed"
