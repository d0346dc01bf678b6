#!/usr/bin/env bash
# Makes sure that the programs which a make target needs are there: by apt when we are root, and otherwise by saying
# what is missing. Does nothing, quickly, when all is there.
#
# Usage: scripts/setup.sh TARGET    TARGET: demo | test | check | bench | release | ci
set -euo pipefail

target=${1:?usage: scripts/setup.sh demo|test|check|bench|release|ci}

# Programs as "program=package". A C compiler links everything and compiles one dependency (ring).
build=(cc=gcc ld=binutils)
traffic=(iptables=iptables ip=iproute2 conntrack=conntrack ipset=ipset)
# A kernel with ip_vs, for where this one has none (docs/lab.md).
lab=(linux.uml=user-mode-linux modprobe=kmod)
# The image's root file system, and starting it.
image=(mmdebstrap=mmdebstrap update-ca-certificates=ca-certificates capsh=libcap2-bin python3=python3)
qemu=(qemu-system-x86_64=qemu-system-x86 busybox=busybox-static)
case $target in
    check | release) wanted=("${build[@]}") ;;
    bench) wanted=("${build[@]}" iptables=iptables ip=iproute2 valgrind=valgrind) ;;
    test) wanted=("${build[@]}" "${traffic[@]}" "${lab[@]}" "${image[@]}") ;;
    demo) wanted=("${build[@]}" iptables=iptables ip=iproute2 ipvsadm=ipvsadm) ;;
    ci) wanted=("${build[@]}" "${traffic[@]}" "${lab[@]}" "${qemu[@]}" "${image[@]}" make=make) ;;
    *)
        echo "setup.sh: unknown target '$target'" >&2
        exit 2
        ;;
esac

# iptables and its relatives live in sbin, which is not in everyone's PATH.
export PATH=$PATH:/usr/sbin:/sbin

packages=()
for item in "${wanted[@]}"; do
    command -v "${item%%=*}" >/dev/null || packages+=("${item#*=}")
done
# ring is compiled against the C library's headers, which gcc only recommends.
[[ -e /usr/include/stdio.h ]] || packages+=(libc6-dev)
# scripts/check-deploy.sh keeps its programs in a virtual environment, which Debian packages apart from Python.
if [[ $target == check || $target == ci ]]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
fi

if ((${#packages[@]})); then
    if ((EUID != 0)); then
        echo "setup.sh: '$target' wants these packages: ${packages[*]}" >&2
        echo "setup.sh: install them (apt-get install ${packages[*]}) or run as root; going on without them" >&2
    elif ! command -v apt-get >/dev/null; then
        echo "setup.sh: '$target' wants these packages, and there is no apt-get: ${packages[*]}" >&2
    else
        echo "setup.sh: installing ${packages[*]}"
        export DEBIAN_FRONTEND=noninteractive
        install=(apt-get install --yes --quiet=2 --no-install-recommends "${packages[@]}")
        # Package lists may be there and current; only when they are not are they fetched.
        # A failure is not the end: what is really needed says so itself, and with a better message.
        "${install[@]}" >/dev/null 2>&1 || { apt-get update --quiet=2 && "${install[@]}" >/dev/null; } ||
            echo "setup.sh: could not install ${packages[*]}; going on without them" >&2
    fi
fi

if ! command -v cargo >/dev/null; then
    echo "setup.sh: cargo is missing: install a Rust toolchain, 1.95 or newer (https://rustup.rs)" >&2
    exit 1
fi
if [[ $target == check || $target == ci ]]; then
    for component in rustfmt clippy; do
        program=cargo-${component/rustfmt/fmt}
        if ! command -v "$program" >/dev/null && command -v rustup >/dev/null; then
            rustup component add "$component"
        fi
    done
fi
