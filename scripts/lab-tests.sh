#!/usr/bin/env bash
# Runs the tests that need a kernel with ip_vs on one that has it: cargo on this machine builds, the lab runs the binary, in one boot.
set -euo pipefail
cd "$(dirname "$0")/.."

if ((EUID != 0)); then
    echo "lab-tests.sh: the lab wants root; the tests of IPVS are left out"
    exit 0
fi
binaries=()
for test in tests/lab_*.rs; do
    name=$(basename "$test" .rs)
    binary=$(cargo test --no-run --test "$name" 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
    [[ -x $binary ]] || { echo "lab-tests.sh: cannot build $test" >&2; exit 1; }
    binaries+=("$binary")
done
exec cargo xtask lab -- sh -c 'for binary; do "$binary" --test-threads=1 || exit 1; done' sh "${binaries[@]}"
