#!/usr/bin/env bash
# Runs the tests that need a kernel with ip_vs (tests/lab_*, tests/ipvs_*) on one that has it, in one boot: cargo builds them
# on this machine, the lab (docs/lab.md) runs them. Each test has a process and a time limit of its own. With CI set, a test that
# fails is tried once more, as in .config/nextest.toml, and named FLAKY if it passes then.
#
# Usage: scripts/lab-tests.sh [FILTER...]    FILTER: part of a test's name, as `cargo test` has it
# With PORTOLAN_LAB_SHOW set, the output of tests that pass is shown, too.
# Ends with a line "test result: ...". Exit status 0: every test passed, and there was at least one.
set -euo pipefail
cd "$(dirname "$0")/.."

# Seconds for one test, and for all of them with the boot.
test_limit=180
lab_limit=1500

# run BINARY TEST: one test, its output in $output.
run() { timeout --kill-after=5 "$test_limit" "$1" --exact "$2" --nocapture >"$output" 2>&1; }

# In the lab: all tests that the filters name, one after the other. Arguments: BINARY... -- FILTER...
inside() {
    local binary tests test name status started note passed=0 failed=() flaky=() binaries=()
    while [[ $1 != -- ]]; do
        binaries+=("$1")
        shift
    done
    shift
    # Back-traces cost seconds each here.
    export RUST_BACKTRACE=${RUST_BACKTRACE:-0}
    output=$(mktemp)
    for binary in "${binaries[@]}"; do
        tests=$("$binary" --list --format=terse "$@" | sed -n 's/: test$//p')
        for test in $tests; do
            name=$(basename "$binary")
            name="${name%-*} $test"
            started=${EPOCHREALTIME/./}
            status=0 note=PASS
            run "$binary" "$test" || status=$?
            if ((status)) && [[ ${CI:-} ]]; then
                cat "$output"
                echo " TRY 1 FAIL [status $status] $name"
                note=FLAKY status=0
                run "$binary" "$test" || status=$?
            fi
            started=$(((${EPOCHREALTIME/./} - started) / 1000))
            printf -v started '%d.%03d s' $((started / 1000)) $((started % 1000))
            if ((status)); then
                ((status != 124 && status != 137)) || echo "The test took longer than $test_limit s and was ended." >>"$output"
                cat "$output"
                printf '%10s [%10s] %s\n' FAIL "$started" "$name"
                failed+=("$name")
            else
                [[ ! ${PORTOLAN_LAB_SHOW:-} ]] || cat "$output"
                printf '%10s [%10s] %s\n' "$note" "$started" "$name"
                passed=$((passed + 1))
                [[ $note == PASS ]] || flaky+=("$name")
            fi
        done
    done
    echo
    ((!${#failed[@]})) || printf '      FAIL %s\n' "${failed[@]}"
    ((!${#flaky[@]})) || printf '     FLAKY %s\n' "${flaky[@]}"
    local word=ok
    ((${#failed[@]} == 0 && passed > 0)) || word=FAILED
    echo "test result: $word. $passed passed; ${#failed[@]} failed; on the lab's kernel ($PORTOLAN_LAB, $(uname -r))"
    [[ $word == ok ]]
}

if [[ ${1:-} == --inside ]]; then
    inside "${@:2}"
    exit
fi

if ((EUID != 0)); then
    echo "lab-tests.sh: the lab wants root; the tests of IPVS are left out"
    # A machine that says so has run all tests or it has failed.
    [[ ! ${CI:-} ]]
    exit
fi
flags=() wanted=()
for file in tests/lab_*.rs tests/ipvs_*.rs tests/lab_*/main.rs; do
    name=${file#tests/}
    name=${name%/main.rs}
    flags+=(--test "${name%.rs}")
done
built=$(cargo test --no-run "${flags[@]}" 2>&1) || { echo "$built" >&2; exit 1; }
mapfile -t wanted < <(sed -n 's/^ *Executable tests.*(\(.*\))$/\1/p' <<<"$built")
if ((2 * ${#wanted[@]} != ${#flags[@]})); then
    printf '%s\nlab-tests.sh: cargo did not name the test programs\n' "$built" >&2
    exit 1
fi
status=0
cargo xtask lab --timeout "$lab_limit" -- scripts/lab-tests.sh --inside "${wanted[@]}" -- "$@" || status=$?
case $status in
0 | 1) ;;
*) echo "test result: FAILED. The lab ended with status $status before all tests had run." ;;
esac
exit "$status"
