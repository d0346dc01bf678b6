//! A node on which kube-proxy's rules are in place: portolan takes over without writing anything.

mod linux_support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use linux_support::in_namespace;
use portolan::iptables::base::{INVALID_COUNTER, LOCALHOST_COUNTER};
use portolan::iptables::names::PREFIXES;
use portolan::kernel::Rule;
use portolan::kernel::rule::{CommentPosition, Not, Recent};
use portolan::linux::counters;
use rstest::rstest;

/// Flags of all runs: IPv4 is enough, as the other family is spelled by the same code.
const FLAGS: [&str; 4] =
    ["--hostname-override=node1", "--cluster-cidr=10.244.0.0/16", "--ip-families=ipv4", "--masquerade-all=false"];

const KUBE_PROXY_LAYOUT: &str = "--iptables-layout=kube-proxy";

fn portolan(arguments: &[&str]) -> String {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/every-kind/cluster.yaml");
    let output = Command::new(env!("CARGO_BIN_EXE_portolan"))
        .args(arguments)
        .args(["--manifests", &manifests.display().to_string()])
        .args(FLAGS)
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

fn not<T>(value: &Not<T>) -> (&'static str, &T) {
    match value {
        Not::Is(value) => ("", value),
        Not::IsNot(value) => ("! ", value),
    }
}

/// A rule as kube-proxy writes it: the comment first (last in jumps), then type of address, protocol, addresses and port, and
/// addresses of hosts without a prefix length.
fn kube_proxy_spelling(spec: &str) -> String {
    let rule = Rule::parse(spec).expect("our own rule");
    let mut words = Vec::new();
    let comment = rule.comment.as_ref().map(|comment| format!("-m comment --comment \"{comment}\""));
    let last = rule.comment_position == CommentPosition::Last;
    words.extend(comment.clone().filter(|_| !last));
    if let Some(states) = &rule.conntrack_state {
        let (not, states) = not(states);
        words.push(format!("-m conntrack {not}--ctstate {}", states.as_str()));
    }
    if rule.source_is_local {
        words.push("-m addrtype --src-type LOCAL".into());
    }
    if rule.destination_is_local {
        words.push("-m addrtype --dst-type LOCAL".into());
    }
    if let Some(mark) = &rule.mark {
        let (not, mark) = not(mark);
        words.push(format!("-m mark {not}--mark 0x{:08x}/0x{:08x}", mark.value, mark.mask));
    }
    match &rule.recent {
        Some(Recent::Check { list, seconds }) => {
            words.push(format!("-m recent --name {list} --rcheck --seconds {seconds} --reap"));
        }
        Some(Recent::Set { list }) => words.push(format!("-m recent --name {list} --set")),
        None => {}
    }
    if let Some(protocol) = rule.protocol {
        words.push(format!("-m {protocol} -p {protocol}"));
    }
    for (flag, net) in [("-d", &rule.destination), ("-s", &rule.source)] {
        if let Some(net) = net {
            let (not, net) = not(net);
            let host = net.prefix_len() == net.max_prefix_len();
            let text = if host { net.addr().to_string() } else { net.to_string() };
            words.push(format!("{not}{flag} {text}"));
        }
    }
    words.extend(rule.destination_port.map(|port| format!("--dport {port}")));
    words.extend(rule.probability.map(|chance| format!("-m statistic --mode random --probability {chance}")));
    words.extend(rule.counter.as_ref().map(|name| format!("-m nfacct --nfacct-name {name}")));
    words.extend(comment.filter(|_| last));
    if let Some((_, target)) = spec.rsplit_once("-j ") {
        words.push(format!("-j {target}"));
    }
    words.join(" ")
}

fn restore(variant: &str, input: &str) {
    let mut child = Command::new(format!("iptables-{variant}-restore"))
        .arg("--noflush")
        .stdin(Stdio::piped())
        .spawn()
        .expect("iptables-restore is installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{input}");
}

/// Everything that kube-proxy would have written on an untouched host.
fn kube_proxy_rules() -> String {
    let rendered = portolan(&["render", KUBE_PROXY_LAYOUT]);
    let mut spelled = String::new();
    let mut rewritten = 0;
    for line in rendered.lines() {
        let rule = line.strip_prefix("-A ").map(|rest| rest.split_once(' ').unwrap_or((rest, "")));
        match rule {
            Some((chain, spec)) => {
                let other = kube_proxy_spelling(spec);
                rewritten += usize::from(other != spec);
                spelled.push_str(&format!("-A {chain} {other}\n"));
            }
            None => spelled.push_str(&format!("{line}\n")),
        }
    }
    assert!(rewritten > 20, "only {rewritten} rules are spelled differently");
    spelled
}

#[rstest]
fn the_rules_of_kube_proxy_are_taken_over_without_writing_any(#[values("nft", "legacy")] variant: &str) {
    in_namespace(|| {
        for name in [INVALID_COUNTER, LOCALHOST_COUNTER] {
            counters::ensure(name, std::time::Duration::from_secs(5)).expect("counters can be made");
        }
        let spelled = kube_proxy_rules();
        restore(variant, &spelled);
        let flag = format!("--iptables-variant={variant}");
        let plan = portolan(&["sync", "--once", "--dry-run", &flag, KUBE_PROXY_LAYOUT]);
        assert_eq!(plan, "0 operations in 0 transactions\n");
    });
}

/// What kube-proxy feeds to iptables-restore when it starts where the nat table holds these chains: its own chains, and the removal
/// of all others with a prefix of its.
fn kube_proxy_sync(nat: &str) -> String {
    let rules = kube_proxy_rules();
    let declared = |name: &str| rules.contains(&format!("\n:{name} "));
    let stale: Vec<&str> = nat
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
        .filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !declared(name))
        .collect();
    let flushes: String = stale.iter().map(|name| format!(":{name} - [0:0]\n")).collect();
    let deletes: String = stale.iter().map(|name| format!("-X {name}\n")).collect();
    // Jumps from built-in chains are looked for one by one, and found.
    let own = |line: &&str| !line.starts_with("-A ") || line.starts_with("-A KUBE-");
    let rules: String = rules.lines().filter(own).map(|line| format!("{line}\n")).collect();
    let (before, nat) = rules.split_once("*nat\n").expect("a nat table");
    let nat = nat.strip_suffix("COMMIT\n").expect("the nat table is last");
    format!("{before}*nat\n{flushes}{nat}{deletes}COMMIT\n")
}

#[rstest]
fn kube_proxy_comes_back_in_place_of_the_compact_layout(#[values("nft", "legacy")] variant: &str) {
    in_namespace(|| {
        let flag = format!("--iptables-variant={variant}");
        let save = || {
            let output =
                Command::new(format!("iptables-{variant}-save")).args(["-t", "nat"]).output().expect("it starts");
            String::from_utf8(output.stdout).expect("output is UTF-8")
        };
        portolan(&["sync", "--once", &flag, "--iptables-layout=compact"]);
        let compact = save();
        assert!(compact.contains("KUBE-SVC-DISPATCH"), "{compact}");
        restore(variant, &kube_proxy_sync(&compact));
        let plan = portolan(&["sync", "--once", "--dry-run", &flag, KUBE_PROXY_LAYOUT]);
        assert_eq!(plan, "0 operations in 0 transactions\n", "as on a node that knew nothing else");
        portolan(&["sync", "--once", &flag, "--iptables-layout=compact"]);
        let chains = |text: &str| {
            let names = text.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
            names.map(str::to_owned).collect::<std::collections::BTreeSet<String>>()
        };
        assert_eq!(chains(&save()), chains(&compact), "and back again");
    });
}
