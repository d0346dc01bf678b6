#!/usr/bin/env bash
# Runs the tests that need a kernel with ip_vs on one that has it: cargo on this machine builds, the lab runs the binary, in one boot.
set -euo pipefail
cd "$(dirname "$0")/.."

if ((EUID != 0)); then
    echo "lab-tests.sh: the lab wants root; the tests of IPVS are left out"
    exit 0
fi
binary=$(cargo test --no-run --test lab_ipvs 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
[[ -x $binary ]] || { echo "lab-tests.sh: cannot build tests/lab_ipvs.rs" >&2; exit 1; }
exec cargo xtask lab -- "$binary" --test-threads=1
