#!/usr/bin/env bash
# Prints the path of Prometheus' promtool: that of the system, or one unpacked from Debian's package `prometheus` into the
# target directory. The package is not installed, since that would start a server on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin

if command -v promtool; then exit; fi
directory=${CARGO_TARGET_DIR:-target}/promtool
if [[ ! -x $directory/promtool ]]; then
    command -v apt-get dpkg >/dev/null || { echo "promtool.sh: there is no promtool, and no apt-get to fetch it" >&2; exit 1; }
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    fetch() { (cd "$scratch" && apt-get download --quiet=2 prometheus >&2); }
    fetch 2>/dev/null || { apt-get update --quiet=2 >&2 && fetch; }
    dpkg -x "$scratch"/prometheus_*.deb "$scratch/root"
    mkdir -p "$directory"
    # In one step, so that a second caller never sees half of it.
    mv "$scratch/root/usr/bin/promtool" "$directory/promtool.new"
    mv "$directory/promtool.new" "$directory/promtool"
fi
echo "$PWD/$directory/promtool" | sed "s|^$PWD//|/|"
