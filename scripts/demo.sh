#!/usr/bin/env bash
# Shows portolan at work on a node made of network namespaces: three pods, a client, one Service with all kinds of addresses. First
# in iptables mode, then in IPVS mode; that one on a kernel with ip_vs, which `cargo xtask lab` finds or boots (docs/lab.md).
# Needs Linux, iptables and iproute2; no root where unprivileged user namespaces are allowed, but for IPVS mode. Everything happens
# inside namespaces (or a guest) that end with this script, however it ends. Exit status 0: everything that is shown worked.
#
# Usage: scripts/demo.sh [iptables|ipvs]    one of the modes; without: both
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

title() { printf '\n\033[1;7m %s \033[0m\n' "$*"; }
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf '\n\033[1mThe demonstration failed:\033[0m %s\n' "$*" >&2; exit 1; }

# === On this machine ===

# What is started so ends when this script does, even if that is killed.
with_us=(setpriv --pdeathsig KILL)

build() {
    local tool
    for tool in cargo ip iptables unshare nsenter setpriv; do
        command -v "$tool" >/dev/null || fail "$tool is not installed"
    done
    say "Building portolan and the demonstration's pods (development profile)"
    cargo build --bin portolan --example demo_pod
    PORTOLAN_DEMO_BIN=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug
    export PORTOLAN_DEMO_BIN
}

# iptables mode: in namespaces, on this machine's kernel.
show_iptables() {
    local user=()
    if ((EUID != 0)); then
        user=(--user --map-root-user)
        unshare "${user[@]}" --net true 2>/dev/null ||
            fail "this system does not let ordinary users make namespaces; run it as root"
    fi
    title "iptables mode, on this machine's kernel ($(uname -r))"
    "${with_us[@]}" unshare "${user[@]}" --net --mount --pid --fork --kill-child scripts/demo.sh --inside iptables
}

# IPVS mode: in the lab.
show_ipvs() {
    local status=0
    title "IPVS mode"
    if ((EUID != 0)); then
        echo "   left out: the lab, which has a kernel with ip_vs, wants root"
        return
    fi
    "${with_us[@]}" cargo xtask lab --timeout 120 -- scripts/demo.sh --inside ipvs || status=$?
    ((status != 125)) || { echo "   left out: there is no kernel with ip_vs, for the reason above"; return; }
    ((!status)) || exit "$status"
}

# === On the node: a network namespace or a guest, where this script's end ends everything started below ===

bin=${PORTOLAN_DEMO_BIN:-}
log=/run/portolan.log

# in_ns NAME COMMAND...: runs a command in a namespace.
in_ns() { nsenter --net="/run/netns.d/$1" "${@:2}"; }

# host NAME LINK IPV4 IPV6 GATEWAY4 GATEWAY6: a namespace whose one interface is connected to LINK on the node.
host() {
    touch "/run/netns.d/$1"
    unshare --net sh -c "mount --bind /proc/self/ns/net /run/netns.d/$1"
    ip link add "$2" type veth peer name eth0 netns "/run/netns.d/$1"
    ip link set "$2" up
    in_ns "$1" sh -c "echo 0 >/proc/sys/net/ipv6/conf/all/accept_redirects; echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_redirects
        ip link set lo up && ip link set eth0 up &&
        ip addr add $3/32 dev eth0 && ip addr add $4/128 dev eth0 nodad &&
        ip route add $5 dev eth0 && ip route add default via $5 &&
        ip -6 route add $6 dev eth0 && ip -6 route add default via $6 dev eth0"
}

make_node() {
    local key number
    say "1. A node with three pods, and a client on the network outside"
    mount -t tmpfs tmpfs /run
    mkdir /run/netns.d /run/manifests
    ip link set lo up
    for key in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 >"/proc/sys/net/$key"; done
    # The node must not tell pods shorter ways to each other: replies have to come back through it.
    for key in ipv6/conf/default/accept_dad ipv4/conf/all/send_redirects ipv4/conf/default/send_redirects; do
        echo 0 >"/proc/sys/net/$key"
    done
    ip link add cbr0 type bridge
    ip addr add 10.244.0.1/24 dev cbr0
    ip addr add fd00:10:244::1/64 dev cbr0 nodad
    ip link set cbr0 up
    for number in 1 2 3; do
        host "pod-$number" "pod-$number" "10.244.0.1$number" "fd00:10:244::1$number" 10.244.0.1 fd00:10:244::1
        ip link set "pod-$number" master cbr0
        # A pod that asks a Service may get itself as the answer: back through the port it came from.
        ip link set "pod-$number" type bridge_slave hairpin on
        in_ns "pod-$number" "$bin/examples/demo_pod" serve "pod-$number" 8080 &
    done
    host client eth0 192.168.100.100 fd00:100::100 192.168.100.1 fd00:100::1
    ip addr add 192.168.100.1/24 dev eth0
    ip addr add fd00:100::1/64 dev eth0 nodad
    # The node has ways to everywhere: a Service address needs a route before it is translated.
    ip route add default via 192.168.100.100
    ip -6 route add default via fd00:100::100
    echo "   client 192.168.100.100  ->  node 192.168.100.1  ->  pod-1, pod-2, pod-3 (10.244.0.11 to .13), web servers on port 8080"
}

# start MODE: runs portolan and waits until it serves.
start() {
    local attempt daemon variant=legacy
    # What `iptables` is here: User-mode Linux has no nf_tables.
    [[ $(iptables -V) != *nf_tables* ]] || variant=nft
    say "2. portolan --mode=$1 reads deploy/demo/*.yaml and programs the node"
    cp deploy/demo/*.yaml /run/manifests/
    "$bin/portolan" --manifests=/run/manifests --mode="$1" --iptables-variant=$variant --hostname-override=demo-node \
        --cluster-cidr=10.244.0.0/16,fd00:10:244::/48 --nodeport-addresses=primary --iptables-min-sync-period=100ms \
        --healthz-bind-address=127.0.0.1:10256 --metrics-bind-address=127.0.0.1:10249 >"$log" 2>&1 &
    daemon=$!
    for attempt in $(seq 100); do
        kill -0 "$daemon" 2>/dev/null || { cat "$log"; fail "portolan ended"; }
        if in_ns client "$bin/examples/demo_pod" ask 192.168.100.1:30080 1 >/dev/null 2>&1; then break; fi
        ((attempt < 100)) || { cat "$log"; fail "the Service did not come up"; }
        sleep 0.1
    done
    echo "   iptables rules made: $(iptables-save 2>/dev/null | grep -c '^-A KUBE' || true) for IPv4," \
        "$(ip6tables-save 2>/dev/null | grep -c '^-A KUBE' || true) for IPv6"
}

# virtual_servers ARGUMENT...: what the kernel's load balancer holds, or the part of it that ipvsadm is asked for.
virtual_servers() {
    if command -v ipvsadm >/dev/null; then ipvsadm -Ln "$@"; else cat /proc/net/ip_vs; fi | sed 's/^/   /'
}

# row LABEL FROM ADDRESS: all three pods must have answered.
row() {
    local counts
    counts=$(in_ns "$2" "$bin/examples/demo_pod" ask "$3" 300) || fail "requests to $3 failed"
    printf '   %-13s %-24s from %-7s %s\n' "$1" "$3" "$2" "$counts"
    [ "$(grep -o 'pod-' <<<"$counts" | wc -l)" = 3 ] || fail "not all pods answered"
}

requests() {
    say "3. 300 requests to each address of the Service, and who answered"
    row "cluster IP" pod-1 172.30.0.10:80
    row "cluster IP" pod-1 '[fd00:172:30::10]:80'
    row "node port" client 192.168.100.1:30080
    row "node port" client '[fd00:100::1]:30080'
    row "load balancer" client 203.0.113.10:80
}

take_out() {
    say "4. pod-1 is taken out of web-endpoints-ipv4.yaml while the client goes on asking"
    grep -v '10\.244\.0\.11' deploy/demo/web-endpoints-ipv4.yaml >/run/manifests/.new
    in_ns client "$bin/examples/demo_pod" replace 203.0.113.10:80 \
        /run/manifests/.new /run/manifests/web-endpoints-ipv4.yaml pod-1 | sed 's/^/   /' || fail "traffic did not move cleanly"
}

# metrics NAME: its samples, added up.
metrics() {
    exec 3<>/dev/tcp/127.0.0.1/10249 || return 1
    printf 'GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
    awk -v name="$1" 'index($1, name "{") == 1 || $1 == name { sum += $2; found = 1 } END { if (!found) exit 1; print sum }' <&3
} 2>/dev/null

measured() {
    local count total
    say "5. What portolan measured"
    count=$(metrics kubeproxy_sync_proxy_rules_duration_seconds_count) || fail "no metrics at 127.0.0.1:10249"
    total=$(metrics kubeproxy_sync_proxy_rules_duration_seconds_sum)
    awk -v count="$count" -v total="$total" 'BEGIN { printf "   %d syncs, %.1f ms each on average\n", count, 1000 * total / count }'
}

# inside MODE: all of it, on the node.
inside() {
    trap 'exit 130' INT TERM
    make_node
    start "$1"
    [[ $1 != ipvs ]] || virtual_servers
    requests
    take_out
    # A server that still has connections is kept, with weight 0, until they have ended.
    [[ $1 != ipvs ]] || virtual_servers -t 203.0.113.10:80
    measured
}

case ${1:-} in
--inside) inside "$2" ;;
iptables | ipvs)
    build
    "show_$1"
    ;;
"")
    build
    show_iptables
    show_ipvs
    ;;
*) fail "there is no mode $1" ;;
esac
[[ ${1:-} == --inside ]] || say "Done. Nothing is left behind: the nodes were made of namespaces that have ended."
