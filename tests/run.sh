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
need iperf3 iperf3
need brctl bridge-utils
need python3 python3-minimal
need gcc gcc
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
[ -c /dev/net/tun ] || { echo "tests/run.sh: there is no /dev/net/tun; load it with: modprobe tun" >&2; exit 1; }

echo "== the binary under test"
cargo build --locked -p switch-cli
echo "== unit, model, simulation, fuzz replay, forwarding, control, namespace and kernel-bridge tests"
cargo test --locked --workspace -- --test-threads 4
echo "== the MAC table under loom: every interleaving"
RUSTFLAGS="--cfg vswitch_loom" cargo test --locked -p switch-core --lib --target-dir target/loom fdb::loom_tests
