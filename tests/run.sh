#!/usr/bin/env bash
# All tests, as root on Debian 12 with Rust. Installs what they need and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
    echo "tests/run.sh: the tests make network namespaces and TAPs; run them as root: sudo -E tests/run.sh" >&2
    exit 1
fi
packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); }
need ip iproute2
need ping iputils-ping
need nft nftables
need ethtool ethtool
need tcpdump tcpdump
need dnsmasq dnsmasq-base
need busybox busybox-static
need dhclient isc-dhcp-client
need iperf3 iperf3
need brctl bridge-utils
need python3 python3-minimal
need gcc gcc
need valgrind valgrind
need dpdk-testpmd dpdk-dev
for driver in librte-net-virtio23 librte-net-vhost23 librte-mempool-ring23; do
    dpkg -s "$driver" >/dev/null 2>&1 || packages+=("$driver")
done
if [ "${#packages[@]}" -gt 0 ]; then
    echo "Installing what the tests need: apt-get install ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "${packages[@]}" || {
        apt-get update -q
        apt-get install -y -q --no-install-recommends "${packages[@]}"
    }
fi
# What QEMU guests and libvirt need. A machine that cannot have it runs the other tests, and says so at the end.
guest_packages=()
command -v qemu-system-x86_64 >/dev/null || guest_packages+=(qemu-system-x86)
command -v cpio >/dev/null || guest_packages+=(cpio)
command -v libvirtd >/dev/null || guest_packages+=(libvirt-daemon libvirt-daemon-driver-qemu)
command -v virsh >/dev/null || guest_packages+=(libvirt-clients)
command -v ovsdb-server >/dev/null || guest_packages+=(openvswitch-common)
[ -e /usr/share/openvswitch/vswitch.ovsschema ] || guest_packages+=(openvswitch-switch)
[ -e /usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk ] || guest_packages+=(openvswitch-switch-dpdk)
if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then guest_packages+=(busybox-static); fi
if [ "${#guest_packages[@]}" -gt 0 ]; then
    echo "Installing what the guests need: apt-get install ${guest_packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "${guest_packages[@]}" || {
        apt-get update -q && apt-get install -y -q --no-install-recommends "${guest_packages[@]}"
    } || echo "tests/run.sh: ${guest_packages[*]} cannot be installed" >&2
fi
# What looks at the laboratory's report. Without it that test is skipped.
command -v chromium >/dev/null || apt-get install -y -q --no-install-recommends chromium ||
    echo "tests/run.sh: chromium cannot be installed" >&2
[ -c /dev/net/tun ] || { echo "tests/run.sh: there is no /dev/net/tun; load it with: modprobe tun" >&2; exit 1; }

# Always the whole workspace: with some packages only, cargo builds what they depend on with other features, and anew.
echo "== the binary under test, and all tests"
cargo build --locked --workspace --all-targets
echo "== what QEMU guests boot (target/vm; the kernel's package is downloaded and unpacked, not installed)"
tests/guest/prepare.sh "${CARGO_TARGET_DIR:-target}/vm" || [ $? -eq 3 ] # they are skipped, one by one, with the reason
VSWITCH_SKIPPED=$(mktemp)
export VSWITCH_SKIPPED
log=$(mktemp)
trap 'rm -f "$VSWITCH_SKIPPED" "$log"' EXIT

# Runs `cargo test` with these words, all targets even if one fails. A target that failed has one more try, alone on the
# machine: that tells what is broken from what only a busy machine fails. A pass at the second try is said at the end.
flaky=()
run_tests() {
    local words=() threads=() alone=() target
    while [ $# -gt 0 ] && [ "$1" != -- ]; do words+=("$1") && shift; done
    threads=("$@")
    # Criterion's benches know no such option.
    [ $# -eq 0 ] || alone=(-- --test-threads 1)
    if cargo test --locked --no-fail-fast "${words[@]}" "${threads[@]}" 2>&1 | tee "$log"; then return; fi
    local failed
    failed=$(sed -n 's/^    `\(-[^`]*\)`$/\1/p' "$log")
    [ -n "$failed" ] || return 1 # it was not built
    while read -r target; do
        echo "== second try: $target"
        # shellcheck disable=SC2086 # the target is several words
        cargo test --locked --workspace ${target#-p * } "${features[@]}" "${alone[@]}" </dev/null
        flaky+=("$target")
    done <<<"$failed"
}

features=()
echo "== unit, model, simulation, fuzz replay, forwarding, control, namespace, kernel-bridge and libvirt tests"
run_tests --workspace -- --test-threads 4
echo "== criterion benches, once each"
run_tests --workspace --bench '*'
echo "== what only measuring builds have"
cargo test --locked --workspace --features switch-core/burden,vswitch-benches/stages --lib -- stages burden
echo "== guests of QEMU"
features=(--features vswitch-tests/guests)
run_tests --workspace "${features[@]}" --test guests --test libvirt_guests -- --test-threads 2
echo "== the MAC table under loom: every interleaving"
cargo test --locked --workspace --features switch-core/loom --lib fdb::loom_tests
echo "== $(wc -l <"$VSWITCH_SKIPPED") skipped"
cat "$VSWITCH_SKIPPED"
echo "== ${#flaky[@]} target(s) passed at their second try only"
for target in "${flaky[@]}"; do echo "$target"; done
