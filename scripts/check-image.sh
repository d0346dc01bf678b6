#!/usr/bin/env bash
# Builds the image's root file system (deploy/image/rootfs.sh) around a static portolan, and starts it as the DaemonSet in
# deploy/kustomize/base does, once for each variant of iptables: with its capabilities and no others, no new privileges,
# a read-only root and its mounts, in namespaces of its own on this machine's kernel. What a container runtime adds and
# this does not have is the seccomp filter. Then looks for the rules and at /healthz.
#
# Usage: scripts/check-image.sh [PROFILE]    PROFILE: see deploy/image/build.sh
# In the environment: CAPABILITIES="NET_ADMIN ..." tries others than those of the DaemonSet, PROGRAM=PATH a program that is built.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

limit=${LIMIT:-60}

fail() { echo "test result: FAILED. check-image.sh: $*"; exit 1; }

# === In the namespaces; the mount namespace is private, so that all of this ends with them ===

# wait_for DESCRIPTION COMMAND...: until the command succeeds, for at most $limit seconds.
wait_for() {
    local end=$((SECONDS + limit))
    until "${@:2}" >/dev/null 2>&1; do
        ((SECONDS < end)) || { cat "$logs"/* >&2; fail "waited $limit s in vain: $1"; }
        sleep 0.1
    done
}

# Answers /healthz of the node, in full.
healthz() {
    exec 3<>/dev/tcp/127.0.0.1/10256
    printf 'GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
    timeout 10 cat <&3
}
healthy() { [[ $(healthz) == "HTTP/1.1 200"* ]]; }

# rules VARIANT: what is in the nat tables, by the image's own tools.
rules() {
    chroot "$root" "/usr/sbin/iptables-$1-save" -t nat
    chroot "$root" "/usr/sbin/ip6tables-$1-save" -t nat
}
# serves VARIANT: whether the demonstration's Service is there, for both families.
serves() {
    local text
    text=$(rules "$1") && [[ $text == *"-A KUBE-SERVICES -d 172.30.0.10/32 "* && $text == *"-A KUBE-SERVICES -d fd00:172:30::10/128 "* ]]
}

# What a container runtime mounts, and below it the volumes of the DaemonSet.
mounts() {
    mount --bind "$image" "$root"
    mount --options remount,bind,ro "$root"
    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
    mount -t tmpfs -o mode=755,size=64k tmpfs "$root/dev"
    mknod -m 666 "$root/dev/null" c 1 3
    cp deploy/kustomize/base/config.conf deploy/demo/*.yaml "$volumes/config"
    mount --bind "$volumes/config" "$root/var/lib/kube-proxy"
    mount --options remount,bind,ro "$root/var/lib/kube-proxy"
}

# The DaemonSet's init container, which is privileged; afterwards settings can be read only.
init_container() {
    local command timeout=$root/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established
    mapfile -t command < <(sed -n '/^ *initContainers:/,/^ *securityContext:/s/^ *- \(-.*\|\/.*\)$/\1/p' deploy/kustomize/base/daemonset.yaml)
    [[ ${command[*]} == *--init-only* ]] || fail "the init container's command is not --init-only: ${command[*]}"
    echo 1234 >"$timeout"
    chroot "$root" "${command[@]}" >"$logs/init" 2>&1 || { cat "$logs/init"; fail "the init container failed"; }
    [[ $(<"$timeout") == 86400 ]] || fail "the init container did not make its settings"
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount --options remount,bind,ro "$root/proc/sys"
    mount --options remount,bind,ro "$root/sys"
    : >"$volumes/lock"
    mount --bind "$volumes/lock" "$root/run/xtables.lock"
}

# confined PROGRAM ARGUMENT...: in the root, as the DaemonSet's container.
confined() {
    local capability drop=() number last
    read -r last </proc/sys/kernel/cap_last_cap
    for number in $(seq 0 "$last"); do
        capability=$(capsh "--explain=$number" | sed -n '1s/^cap_\([a-z_]*\) .*/\1/p')
        [[ " $CAPABILITIES " == *" ${capability^^} "* ]] || drop+=("--drop=$number")
    done
    exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin "$(command -v capsh)" --chroot="$root" --no-new-privs "${drop[@]}" --shell="$1" -- "${@:2}"
}

# names: the API server is found by its name, from /etc/hosts and by DNS. In a static program that is not a matter of course.
names() {
    local name client
    echo "127.0.0.1 by-hosts.test" >"$volumes/hosts"
    echo "nameserver 127.0.0.1" >"$volumes/resolv.conf"
    for name in hosts resolv.conf; do mount --bind "$volumes/$name" "$root/etc/$name"; done
    python3 scripts/name-server.py >"$logs/server" 2>&1 &
    for name in by-hosts.test by-dns.test; do
        confined /usr/local/bin/portolan --master="http://$name:8001" --hostname-override=demo-node \
            --nodeport-addresses=primary --healthz-bind-address= --metrics-bind-address= >"$logs/$name" 2>&1 &
        client=$!
        wait_for "a request to $name" grep "asked by the name $name:8001" "$logs/server"
        kill "$client"
        wait "$client" || true
    done
}

# inside VARIANT
inside() {
    local variant=$1 other=nft daemon held status=0
    [[ $variant != nft ]] || other=legacy
    mounts
    ip link set lo up
    ip link add eth0 type veth peer name peer0
    ip link set peer0 up
    ip link set eth0 up
    ip addr add 192.168.100.1/24 dev eth0
    ip addr add fd00:100::1/64 dev eth0 nodad
    # As kubelet does: by this chain the variant is chosen.
    chroot "$root" "/usr/sbin/iptables-$variant" -t mangle -N KUBE-IPTABLES-HINT
    init_container
    confined /usr/local/bin/kube-proxy --config=/var/lib/kube-proxy/config.conf --hostname-override=demo-node \
        --manifests=/var/lib/kube-proxy >"$logs/daemon" 2>&1 &
    daemon=$!
    chroot "$root" /bin/sh -c true
    ! chroot "$root" /bin/sh -c ': >/usr/x' 2>/dev/null || fail "the root file system can be written"
    wait_for "the Service's rules by iptables-$variant" serves "$variant"
    wait_for "/healthz says 200" healthy
    [[ $(rules "$other") != *KUBE-* ]] || fail "there are rules of $other as well"
    held=$(sed -n 's/^CapEff:.//p' "/proc/$daemon/status")
    held=$(capsh "--decode=$held" | sed 's/.*=//; s/cap_//g' | tr , '\n' | sort | xargs)
    [[ ${held^^} == "$(printf '%s\n' $CAPABILITIES | sort | xargs)" ]] || fail "it holds other capabilities: $held"
    grep -q '^NoNewPrivs:.1$' "/proc/$daemon/status" || fail "it could get new privileges"
    kill "$daemon"
    wait "$daemon" || status=$?
    cat "$logs/daemon"
    ((!status)) || fail "it ended with status $status"
    # Not the init container's: limits of connection tracking belong to the first network namespace, the OOM score is kubelet's.
    ! grep WARN "$logs/daemon" | grep -v -e nf_conntrack_max -e hashsize -e 'OOM score' || fail "it warns at a start"
    names
}

if [[ ${1:-} == --inside ]]; then
    root=$3/root logs=$3/logs volumes=$3/volumes image=$4
    inside "$2"
    exit
fi

# === On this machine ===

((EUID == 0)) || { echo "check-image.sh: left out: it wants root" >&2; [[ ! ${CI:-} ]]; exit; }
if [[ ! -v CAPABILITIES ]]; then
    CAPABILITIES=$(sed -n '/^ *add:/,/^ *volumeMounts:/s/^ *- \([A-Z_]*\)$/\1/p' deploy/kustomize/base/daemonset.yaml | tr '\n' ' ')
    [[ $CAPABILITIES == *NET_ADMIN* ]] || fail "the DaemonSet has no capabilities"
fi
export CAPABILITIES
program=${PROGRAM:-$(deploy/image/build.sh "${1:-dev}")}
# Debian's packages are fetched once, until the script that says which changes.
base=${CARGO_TARGET_DIR:-target}/image/rootfs
if ! cmp --silent deploy/image/rootfs.sh "$base/script"; then
    rm -rf "$base"
    mkdir -p "$base"
    # Without the capability to mount, as in a container that builds an image.
    capsh --drop=cap_sys_admin -- deploy/image/rootfs.sh "$base/image" "$program"
    cp deploy/image/rootfs.sh "$base/script"
fi
install -m 0755 "$program" "$base/image/usr/local/bin/portolan"
echo "the image's root file system: $(du --summarize --apparent-size --block-size=1K "$base/image" | cut -f 1) KiB"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for variant in nft legacy; do
    mkdir -p "$work/$variant"/{root,logs,volumes/config}
    timeout 200 unshare --net --mount --pid --fork --kill-child --mount-proc \
        scripts/check-image.sh --inside "$variant" "$work/$variant" "$(realpath "$base/image")"
    echo "image: started with ${CAPABILITIES% }; iptables-$variant holds the rules, /healthz answers, names are found"
done
echo "test result: ok. 2 passed; the image's root file system, with iptables-nft and iptables-legacy"
