#!/usr/bin/env bash
# Counts instructions per frame and fails if they rose; needs valgrind. More words go to core-cost:
#   benches/gate.sh               compares with benches/instructions.toml
#   benches/gate.sh --accept      writes that file anew
#   benches/gate.sh --only warm,hit
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo "gate.sh: apt-get install valgrind" >&2; exit 1; }
cargo build --locked --profile gate -p vswitch-benches --bin core-cost
exec "${CARGO_TARGET_DIR:-target}/gate/core-cost" --gate benches/instructions.toml "$@"
