//! What the tests against the real kernel share.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::ffi::OsString;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use portolan::kernel::rule::{CommentPosition, ConntrackStates, Mark, Not, Probability, Recent, Rule, Target};
use portolan::kernel::{ChainClass, ChainKey, ChainName, Claims, RuleKey, Table, TableId};
use portolan::linux::{LinuxKernel, Options, Variant};
use portolan::net::{IpFamily, Protocol};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs a test in a network namespace of its own, with the loopback interface up.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only the network namespace of this thread changes; no file descriptors are shared differently.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("these tests need root");
            shell("ip link set lo up");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a shell command in the calling thread's namespace and returns its output.
pub(crate) fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A kernel with a lock file of its own, so that tests do not wait for each other, and the directory that holds it.
pub(crate) fn kernel(variant: Variant) -> (LinuxKernel, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let kernel = LinuxKernel::new(options(variant, &directory)).unwrap();
    (kernel, directory)
}

pub(crate) fn options(variant: Variant, directory: &tempfile::TempDir) -> Options {
    let lock: OsString = directory.path().join("lock").into();
    Options {
        variant: Some(variant),
        environment: vec![("XTABLES_LOCKFILE".into(), lock)],
        lock_wait: Duration::from_secs(30),
        ..Options::default()
    }
}

pub(crate) const SHARED: ChainName = ChainName::fixed("KUBE-SERVICES");
pub(crate) const PRIVATE: ChainName = ChainName::fixed("KUBE-SVC-AAAAAAAAAAAAAAAA");
pub(crate) const OTHER: ChainName = ChainName::fixed("KUBE-SVC-BBBBBBBBBBBBBBBB");
pub(crate) const OUTPUT: ChainName = ChainName::fixed("OUTPUT");
pub(crate) const JUMP: &str =
    "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";

/// What the tests call theirs.
pub(crate) fn claims() -> Claims {
    let mut claims = Claims::default();
    for table in Table::SERVING {
        claims.chains.push((table, SHARED, ChainClass::Shared));
        claims.chains.push((table, OUTPUT, ChainClass::Host));
        claims.prefixes.push((table, "KUBE-SVC-"));
        claims.jumps.push((table, OUTPUT, JUMP.into()));
    }
    claims
}

pub(crate) fn key(family: IpFamily, table: Table, name: ChainName) -> ChainKey {
    ChainKey { table: TableId { family, table }, name }
}

pub(crate) fn rule_key(chain: ChainKey, spec: &str) -> RuleKey {
    RuleKey { chain, spec: spec.into() }
}

pub(crate) fn text(rule: &Rule) -> Arc<str> {
    let mut out = String::new();
    rule.render(&mut out);
    out.into()
}

/// Every kind of match and target that the backend writes into a table, alone and together.
pub(crate) fn rules(family: IpFamily, table: Table) -> Vec<Rule> {
    let net = |v4: &str, v6: &str| match family {
        IpFamily::V4 => v4.parse().unwrap(),
        IpFamily::V6 => v6.parse().unwrap(),
    };
    let commented = |comment: &str| Rule { comment: Some(comment.to_owned()), ..Rule::default() };
    let to = |target: Target| Rule { target: Some(target), ..Rule::default() };
    let mark = Mark { value: 0x4000, mask: 0x4000 };
    let mut rules = vec![
        Rule::default(),
        commented("only a comment; \"quoted\", it's \\ odd"),
        commented(""),
        commented(&"long ".repeat(51)),
        Rule { source: Some(Not::Is(net("10.0.0.1/32", "fd00::1/128"))), ..to(Target::Accept) },
        Rule { source: Some(Not::Is(net("0.0.0.0/0", "::/0"))), ..to(Target::Jump(OTHER)) },
        Rule {
            source: Some(Not::IsNot(net("127.0.0.0/8", "::1/128"))),
            destination: Some(Not::Is(net("10.96.0.0/12", "fd00:10::/48"))),
            ..to(Target::Jump(OTHER))
        },
        Rule { destination: Some(Not::IsNot(net("127.0.0.0/8", "::1/128"))), ..to(Target::Return) },
        Rule { in_interface: Some(Not::Is("eth0".into())), ..to(Target::Return) },
        Rule { in_interface: Some(Not::IsNot("cali+".into())), ..to(Target::Jump(OTHER)) },
        Rule { in_interface: Some(Not::Is("+".into())), ..to(Target::Return) },
        Rule { source_is_local: true, ..commented("masquerade LOCAL traffic") },
        Rule { destination_is_local: true, ..to(Target::Jump(OTHER)) },
        Rule { source_is_local: true, destination_is_local: true, ..to(Target::Return) },
        Rule { mark: Some(Not::Is(mark)), ..to(Target::Accept) },
        Rule { mark: Some(Not::IsNot(mark)), ..to(Target::Return) },
        Rule { mark: Some(Not::Is(Mark { value: 1, mask: u32::MAX })), ..to(Target::Return) },
        Rule { counter: Some("portolan_test".into()), protocol: Some(Protocol::Tcp), ..to(Target::Return) },
        Rule {
            conntrack_state: Some(Not::Is(ConntrackStates::New)),
            comment_position: CommentPosition::Last,
            target: Some(Target::Jump(OTHER)),
            ..commented("kubernetes service portals")
        },
        Rule { conntrack_state: Some(Not::IsNot(ConntrackStates::RelatedEstablishedDnat)), ..commented("x") },
        Rule { conntrack_state: Some(Not::Is(ConntrackStates::RelatedEstablished)), ..to(Target::Accept) },
        Rule { conntrack_state: Some(Not::Is(ConntrackStates::Invalid)), ..to(Target::Return) },
    ];
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        rules.push(Rule {
            protocol: Some(protocol),
            destination: Some(Not::Is(net("10.0.0.10/32", "fd00::10/128"))),
            destination_port: Some(53),
            target: Some(Target::Jump(OTHER)),
            ..commented("kube-system/kube-dns:dns cluster IP")
        });
        rules.push(Rule {
            protocol: Some(protocol),
            destination_port: Some(65535),
            destination_is_local: true,
            counter: Some("portolan_test".into()),
            ..to(Target::Accept)
        });
    }
    for n in [2, 3, 7, 11, 997, 1000] {
        rules.push(Rule { probability: Some(Probability::one_in(n)), ..to(Target::Jump(OTHER)) });
    }
    rules.push(Rule { probability: Some(Probability(0x6543_2101)), ..to(Target::Jump(OTHER)) });
    let list = ChainName::fixed("KUBE-SEP-AAAAAAAAAAAAAAAA");
    rules.push(Rule { recent: Some(Recent::Check { list, seconds: 10800 }), ..to(Target::Jump(OTHER)) });
    rules.push(Rule { recent: Some(Recent::Set { list }), ..to(Target::Return) });
    match table {
        Table::Filter => rules.extend([to(Target::Reject), to(Target::Drop)]),
        Table::Mangle => {}
        Table::Nat => {
            let endpoint = match family {
                IpFamily::V4 => "10.180.0.1:8080".parse().unwrap(),
                IpFamily::V6 => "[fd00:180::1]:8080".parse().unwrap(),
            };
            rules.extend([
                to(Target::OrMark(0x4000)),
                to(Target::XorMark(0x4000)),
                Rule {
                    protocol: Some(Protocol::Tcp),
                    recent: Some(Recent::Set { list }),
                    target: Some(Target::Dnat(endpoint)),
                    ..commented("ns/svc:p")
                },
            ]);
        }
    }
    rules
}
