#!/usr/bin/env bash
# Makes the root file system of the image from Debian's packages: portolan, the iptables tools of both variants and the
# libraries that they need, and a shell (busybox) for looking around. The Dockerfile and
# scripts/check-image.sh both run this. Wants mmdebstrap,
# ca-certificates and root, but no privilege to mount: packages are unpacked, none of their scripts run.
#
# Usage: deploy/image/rootfs.sh DIRECTORY PROGRAM    DIRECTORY: empty or not there; PROGRAM: what build.sh printed
set -euo pipefail

# What the tests of the real kernel run with as well.
suite=bookworm
directory=${1:?usage: rootfs.sh DIRECTORY PROGRAM}
program=${2:?usage: rootfs.sh DIRECTORY PROGRAM}

# Which packages are in it, for those who look for vulnerable ones: a file each, where scanners of images expect it.
# shellcheck disable=SC2016 # mmdebstrap's shell expands these.
record='mkdir -p "$1/var/lib/dpkg/status.d"; for package in "$1"/var/cache/apt/archives/*.deb; do
    name=$(dpkg-deb --field "$package" Package); { dpkg-deb --field "$package"; echo "Status: install ok installed"; } >"$1/var/lib/dpkg/status.d/$name"
done'
log=$(mktemp)
trap 'rm -f "$log"' EXIT
mmdebstrap --quiet --mode=root --variant=extract --format=directory --include=iptables,busybox-static --aptopt='Acquire::Retries "3"' \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --extract-hook="$record" "$suite" "$directory" >"$log" 2>&1 ||
    { cat "$log" >&2; exit 1; }

# What portolan never reads. The licences stay.
(cd "$directory/usr/share" && rm -rf man locale lintian bug && find doc -not -type d -not -name copyright -delete)
# The tools look up no names, and portolan has that built in.
rm -rf "$directory/usr/lib/"*/{gconv,libnss_*} "$directory"/var/{cache,log,lib/apt} "$directory"/var/lib/dpkg/{status,status-old}

# The packages' scripts would choose between the variants once and for all; portolan finds out at each start, by the
# programs that have the variant in their names. The plain names are for people.
for tool in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -sf "$tool-nft" "$directory/usr/sbin/$tool"
done
ln -sf busybox "$directory/usr/bin/sh"
for tool in cat grep ip ls ps wget; do ln -sf busybox "$directory/usr/bin/$tool"; done

install -D --mode 0755 "$program" "$directory/usr/local/bin/portolan"
# By this name the DaemonSet of kube-proxy starts it.
ln -sf portolan "$directory/usr/local/bin/kube-proxy"
# For a kubeconfig without a CA. That of the build machine's package, without what somebody added to it; the package's
# dependencies stay out of the image so.
mkdir -p "$directory/etc/ssl/certs"
cat /usr/share/ca-certificates/mozilla/*.crt >"$directory/etc/ssl/certs/ca-certificates.crt"
# Places to mount things on, since the root file system is read-only.
mkdir -p "$directory"/{dev,proc,sys,run,tmp,etc,lib/modules,var/lib/kube-proxy}
for file in run/xtables.lock etc/hosts etc/resolv.conf; do : >"$directory/$file"; done
