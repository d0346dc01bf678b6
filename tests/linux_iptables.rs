//! The iptables side against the real tools and kernel, in network namespaces.

mod linux_support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linux_support::*;
use portolan::kernel::rule::{Not, Rule, Target};
use portolan::kernel::{
    ChainBody, ChainKey, ChainName, Digest, ErrorKind, FoundChain, Kernel, KernelError, Op, Placement, Table, TableId,
};
use portolan::linux::{LinuxKernel, Options, Variant};
use portolan::net::{IpFamily, PerFamily};
use rstest::rstest;

type Results = Vec<Result<(), KernelError>>;

fn assert_done(results: &Results) {
    assert!(results.iter().all(Result::is_ok), "{results:#?}");
}

fn kinds(results: &Results) -> Vec<Option<ErrorKind>> {
    results.iter().map(|result| result.as_ref().err().map(|error| error.kind)).collect()
}

fn found(kernel: &mut LinuxKernel, table: TableId) -> Vec<(ChainName, FoundChain)> {
    let dump = kernel.dump(table, &claims()).unwrap();
    dump.chains.into_iter().filter(|(name, found)| *name != OUTPUT || *found != FoundChain::Host(vec![])).collect()
}

fn replace(chain: ChainKey, rules: &[Rule]) -> Op {
    Op::ReplaceChain(chain, Arc::new(ChainBody::of(rules)))
}

fn append(chain: ChainKey, spec: &str) -> Op {
    Op::InsertRule(rule_key(chain, spec), Placement::Tail)
}

fn digest_of(rules: &[Rule]) -> Digest {
    ChainBody::of(rules).digest
}

#[rstest]
fn what_is_written_is_read_back_as_the_same(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
    #[values(Table::Nat, Table::Filter)] table: Table,
) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        kernel.ensure_counter("portolan_test").unwrap();
        let rules = rules(family, table);
        let [shared, private, other] = [SHARED, PRIVATE, OTHER].map(|name| key(family, table, name));
        let mut ops = vec![Op::CreateChain(shared), replace(other, &[]), replace(private, &rules)];
        ops.extend(rules.iter().map(|rule| append(shared, &text(rule))));
        assert_done(&kernel.apply(&ops));

        let texts: Vec<Arc<str>> = rules.iter().map(text).collect();
        let mut expected = vec![
            (SHARED, FoundChain::Shared(texts.clone())),
            (OTHER, FoundChain::Private(digest_of(&[]))),
            (PRIVATE, FoundChain::Private(digest_of(&rules))),
        ];
        expected.sort_by_key(|(name, _)| *name);
        let mut chains = found(&mut kernel, shared.table);
        chains.sort_by_key(|(name, _)| *name);
        assert_eq!(chains, expected);

        // Each rule is found by its canonical text.
        let mut ops: Vec<Op> = texts.iter().rev().map(|text| Op::DeleteRule(rule_key(shared, text))).collect();
        ops.push(Op::DeleteChain(other));
        ops.push(Op::DeleteChain(private));
        ops.push(Op::DeleteChain(shared));
        assert_done(&kernel.apply(&ops));
        assert_eq!(found(&mut kernel, shared.table), []);
    });
}

#[rstest]
fn masquerading_is_read_back_as_the_same(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let chain = key(family, Table::Nat, PRIVATE);
        let rules = [true, false]
            .map(|random_fully| Rule { target: Some(Target::Masquerade { random_fully }), ..Rule::default() });
        assert_done(&kernel.apply(&[replace(chain, &rules)]));
        assert_eq!(found(&mut kernel, chain.table), [(PRIVATE, FoundChain::Private(digest_of(&rules)))]);
        assert_ne!(digest_of(&rules), digest_of(&rules[..1]));
    });
}

#[rstest]
fn rules_come_and_go_at_their_place(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let chain = key(family, Table::Nat, SHARED);
        let host = key(family, Table::Nat, OUTPUT);
        let head = |spec: &str| Op::InsertRule(rule_key(chain, spec), Placement::Head);
        let texts = |specs: &[&str]| FoundChain::Shared(specs.iter().map(|spec| Arc::from(*spec)).collect());
        let jump = Op::InsertRule(rule_key(host, JUMP), Placement::Head);
        let mut ops = vec![Op::CreateChain(chain), append(chain, "-p tcp"), head("-p udp"), head("-p sctp"), jump];
        ops.push(append(chain, "-j RETURN"));
        assert_done(&kernel.apply(&ops));
        assert_eq!(
            found(&mut kernel, chain.table),
            [
                (OUTPUT, FoundChain::Host(vec![JUMP.into()])),
                (SHARED, texts(&["-p sctp", "-p udp", "-p tcp", "-j RETURN"]))
            ]
        );
        // A rule that moves to the head in one transaction.
        assert_done(&kernel.apply(&[Op::DeleteRule(rule_key(chain, "-p tcp")), head("-p tcp")]));
        let (_, now) = found(&mut kernel, chain.table).remove(1);
        assert_eq!(now, texts(&["-p tcp", "-p sctp", "-p udp", "-j RETURN"]));

        let rewritten = ["-j ACCEPT", "-p udp"].map(|spec| rule_key(chain, spec)).to_vec();
        assert_done(&kernel.apply(&[Op::RewriteChain(chain, rewritten)]));
        let (_, now) = found(&mut kernel, chain.table).remove(1);
        assert_eq!(now, texts(&["-j ACCEPT", "-p udp"]));

        assert_done(&kernel.apply(&[Op::DeleteChain(chain), Op::DeleteRule(rule_key(host, JUMP))]));
        assert_eq!(found(&mut kernel, chain.table), []);
    });
}

#[rstest]
fn chains_that_jump_to_each_other_go_in_one_transaction(#[values(Variant::Nft, Variant::Legacy)] variant: Variant) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let [a, b] = [PRIVATE, OTHER].map(|name| key(IpFamily::V4, Table::Nat, name));
        let to = |name| [Rule { target: Some(Target::Jump(name)), ..Rule::default() }];
        assert_done(&kernel.apply(&[replace(a, &to(OTHER)), replace(b, &to(PRIVATE))]));
        assert_done(&kernel.apply(&[Op::DeleteChain(a), Op::DeleteChain(b)]));
        assert_eq!(found(&mut kernel, a.table), []);
    });
}

/// What makes a transaction fail, and what its operation reports.
#[rstest]
#[case::missing_rule(|chain: ChainKey| Op::DeleteRule(rule_key(chain, "-p udp")), ErrorKind::NotFound)]
#[case::rule_of_a_missing_chain(
    |chain: ChainKey| Op::DeleteRule(rule_key(ChainKey { name: PRIVATE, ..chain }, "-p udp")),
    ErrorKind::NotFound
)]
#[case::insertion_into_a_missing_chain(
    |chain: ChainKey| Op::InsertRule(rule_key(ChainKey { name: PRIVATE, ..chain }, "-p udp"), Placement::Head),
    ErrorKind::NotFound
)]
#[case::appending_to_a_missing_chain(
    |chain: ChainKey| append(ChainKey { name: PRIVATE, ..chain }, "-p udp"),
    ErrorKind::NotFound
)]
#[case::jump_to_a_missing_chain(|chain: ChainKey| append(chain, "-j KUBE-NOWHERE"), ErrorKind::NotFound)]
#[case::existing_chain(Op::CreateChain, ErrorKind::Exists)]
#[case::missing_chain(|chain: ChainKey| Op::DeleteChain(ChainKey { name: PRIVATE, ..chain }), ErrorKind::NotFound)]
#[case::chain_in_use(Op::DeleteChain, ErrorKind::Busy)]
#[case::bad_port(|chain: ChainKey| append(chain, "-p tcp -m tcp --dport 99999"), ErrorKind::Rejected)]
#[case::unknown_option(|chain: ChainKey| append(chain, "--bogus"), ErrorKind::Rejected)]
#[case::unknown_match(|chain: ChainKey| append(chain, "-m bogus --bogus"), ErrorKind::Unsupported)]
fn a_failing_operation_is_named_and_takes_nothing_with_it(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
    #[case] op: fn(ChainKey) -> Op,
    #[case] kind: ErrorKind,
) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let chain = key(family, Table::Nat, SHARED);
        let jump = Op::InsertRule(rule_key(key(family, Table::Nat, OUTPUT), JUMP), Placement::Head);
        assert_done(&kernel.apply(&[Op::CreateChain(chain), jump]));
        let before = found(&mut kernel, chain.table);

        let filter = key(family, Table::Filter, SHARED);
        let other = key(family, Table::Nat, OTHER);
        let ops = [Op::CreateChain(filter), append(chain, "-p sctp"), op(chain), replace(other, &[])];
        let results = kernel.apply(&ops);
        // The filter section came first and stays; the nat section failed as a whole.
        let expected = [None, Some(ErrorKind::Aborted), Some(kind), Some(ErrorKind::Aborted)];
        assert_eq!(kinds(&results), expected, "{results:#?}");
        assert_eq!(found(&mut kernel, chain.table), before);
        assert_eq!(found(&mut kernel, filter.table), [(SHARED, FoundChain::Shared(vec![]))]);
        let message = results[2].as_ref().unwrap_err().to_string();
        assert!(message.contains("tables") && message.contains('['), "{message}");
    });
}

/// Only the kernel refuses this, and legacy does not say which line it was.
#[rstest]
#[case(Variant::Nft, ErrorKind::Aborted, ErrorKind::Rejected)]
#[case(Variant::Legacy, ErrorKind::Aborted, ErrorKind::Aborted)]
fn what_the_kernel_refuses_is_named_if_the_tool_can_tell(
    #[case] variant: Variant,
    #[case] other: ErrorKind,
    #[case] culprit: ErrorKind,
) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let chain = key(IpFamily::V4, Table::Nat, SHARED);
        assert_done(&kernel.apply(&[Op::CreateChain(chain)]));
        let bad = append(chain, "-m nfacct --nfacct-name no_such_counter");
        let results = kernel.apply(&[append(chain, "-p tcp"), bad.clone()]);
        assert_eq!(kinds(&results), [Some(other), Some(culprit)], "{results:#?}");
        // Alone, it is to blame in any case.
        let results = kernel.apply(&[bad]);
        assert_eq!(kinds(&results), [Some(ErrorKind::Rejected)], "{results:#?}");
        assert_eq!(found(&mut kernel, chain.table), [(SHARED, FoundChain::Shared(vec![]))]);
    });
}

#[rstest]
fn both_families_are_one_call_but_fail_apart(#[values(Variant::Nft, Variant::Legacy)] variant: Variant) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let [v4, v6] = IpFamily::ALL.map(|family| key(family, Table::Nat, SHARED));
        let results = kernel.apply(&[Op::CreateChain(v4), Op::DeleteChain(v6), Op::DeleteRule(rule_key(v6, "-p tcp"))]);
        assert_eq!(kinds(&results)[0], None);
        assert_eq!(kinds(&results)[2], Some(ErrorKind::NotFound), "{results:#?}");
        assert_eq!(found(&mut kernel, v4.table), [(SHARED, FoundChain::Shared(vec![]))]);
    });
}

#[rstest]
fn filter_rules_come_before_and_go_after_the_nat_change(#[values(Variant::Nft, Variant::Legacy)] variant: Variant) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let filter = key(IpFamily::V4, Table::Filter, SHARED);
        let nat = key(IpFamily::V4, Table::Nat, SHARED);
        assert_done(&kernel.apply(&[Op::CreateChain(filter), append(filter, "-p tcp -j DROP")]));
        // The nat section fails: what was added to filter is there, what was to be removed is there still.
        let results = kernel.apply(&[
            Op::DeleteRule(rule_key(filter, "-p tcp -j DROP")),
            append(filter, "-p udp -j DROP"),
            append(nat, "-p udp"),
        ]);
        let expected = [Some(ErrorKind::Aborted), None, Some(ErrorKind::NotFound)];
        assert_eq!(kinds(&results), expected, "{results:#?}");
        let both = ["-p tcp -j DROP", "-p udp -j DROP"].map(Arc::from).to_vec();
        assert_eq!(found(&mut kernel, filter.table), [(SHARED, FoundChain::Shared(both))]);
    });
}

#[rstest]
fn what_belongs_to_others_is_neither_seen_nor_touched(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
    #[values("iptables", "ip6tables")] tool: &str,
) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let family = if tool == "iptables" { IpFamily::V4 } else { IpFamily::V6 };
        let restore = format!(
            "{tool}-{variant}-restore --noflush <<'X'\n*nat\n:CNI-OTHER - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
             -A CNI-OTHER -p icmp -m comment --comment \"not ours\" -j RETURN\n-A OUTPUT -p tcp -m multiport --dports \
             1,2 -j CNI-OTHER\n-A OUTPUT -j CNI-OTHER\nCOMMIT\nX"
        );
        shell(&restore);
        let save = format!("{tool}-{variant}-save -t nat | grep -v '^#' | sed 's/\\[.*\\]//'");
        let before = shell(&save);
        let chain = key(family, Table::Nat, SHARED);
        let private = key(family, Table::Nat, PRIVATE);
        let jump = rule_key(key(family, Table::Nat, OUTPUT), JUMP);
        let made = [
            Op::CreateChain(chain),
            replace(private, &[Rule::default()]),
            Op::InsertRule(jump.clone(), Placement::Head),
        ];
        assert_done(&kernel.apply(&made));
        let names: Vec<ChainName> = found(&mut kernel, chain.table).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(shell(&save).lines().filter(|line| !line.contains("KUBE-S")).eq(before.lines()));
        assert_done(&kernel.apply(&[Op::DeleteRule(jump), Op::DeleteChain(chain), Op::DeleteChain(private)]));
        assert_eq!(shell(&save), before);
    });
}

#[rstest]
fn rules_that_cannot_be_read_are_kept_as_text_or_spoil_the_digest(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let odd = "-p tcp -m multiport --dports 1,2 -j RETURN";
        // The matches stand in another order than ours: only this text finds the rule.
        let swapped = "-m mark --mark 0x1/0x1 -m addrtype --dst-type LOCAL";
        shell(&format!(
            "iptables-{variant}-restore --noflush <<'X'\n*nat\n:{SHARED} - [0:0]\n:{PRIVATE} - [0:0]\n\
             -A {SHARED} {odd}\n-A {SHARED} {swapped}\n-A {PRIVATE} {swapped}\n-A {PRIVATE} {odd}\nCOMMIT\nX"
        ));
        let chain = key(IpFamily::V4, Table::Nat, SHARED);
        let chains = found(&mut kernel, chain.table);
        let FoundChain::Shared(texts) = &chains[0].1 else { panic!("{chains:?}") };
        assert_eq!(texts.iter().map(|text| &**text).collect::<Vec<_>>(), [odd, swapped]);
        let readable = Rule::parse(swapped).unwrap();
        assert_ne!(chains[1].1, FoundChain::Private(digest_of(std::slice::from_ref(&readable))));
        assert_ne!(chains[1].1, FoundChain::Private(digest_of(&[readable, Rule::default()])));
        let ops: Vec<Op> = texts.iter().map(|text| Op::DeleteRule(rule_key(chain, text))).collect();
        assert_done(&kernel.apply(&ops));
    });
}

#[rstest]
fn an_untouched_namespace_has_nothing_of_ours(#[values(Variant::Nft, Variant::Legacy)] variant: Variant) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        for table in TableId::serving() {
            assert_eq!(found(&mut kernel, table), []);
        }
        assert_eq!(kernel.supported_families(), PerFamily { v4: true, v6: true });
        assert!(kernel.probe(PerFamily { v4: true, v6: true }).random_fully);
    });
}

#[test]
fn a_family_without_ipv6_is_not_supported() {
    in_namespace(|| {
        portolan::linux::sysctl::ensure("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let error = LinuxKernel::new(options(Variant::Nft, &directory)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.to_string().contains("disable_ipv6"), "{error}");
    });
}

#[test]
fn a_held_lock_is_transient_and_changes_nothing() {
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let lock = std::fs::File::create(directory.path().join("lock")).unwrap();
        let options = Options { lock_wait: Duration::from_secs(1), ..options(Variant::Legacy, &directory) };
        let mut kernel = LinuxKernel::new(options).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let chains = Table::SERVING.map(|table| key(IpFamily::V4, table, SHARED));
        let results = kernel.apply(&chains.map(Op::CreateChain));
        assert_eq!(kinds(&results), [Some(ErrorKind::Transient); 2], "{results:#?}");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
        assert_done(&kernel.apply(&chains.map(Op::CreateChain)));
    });
}

/// A kernel whose tools are found in `directory` only.
fn kernel_with_tools(variant: Variant, directory: &tempfile::TempDir) -> LinuxKernel {
    let path = format!("{}:/bin", directory.path().display());
    LinuxKernel::new(Options {
        variant: Some(variant),
        families: PerFamily { v4: false, v6: false },
        deadline: Duration::from_millis(500),
        environment: vec![("PATH".into(), path.into())],
        ..Options::default()
    })
    .unwrap()
}

fn write_tool(directory: &tempfile::TempDir, name: &str, script: &str) {
    let path = directory.path().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn missing_tools_are_unsupported() {
    let directory = tempfile::tempdir().unwrap();
    let mut kernel = LinuxKernel::new(Options {
        variant: Some(Variant::Nft),
        families: PerFamily { v4: false, v6: false },
        environment: vec![("PATH".into(), directory.path().into())],
        ..Options::default()
    })
    .unwrap();
    let chain = key(IpFamily::V4, Table::Nat, SHARED);
    let results = kernel.apply(&[Op::CreateChain(chain)]);
    assert_eq!(kinds(&results), [Some(ErrorKind::Unsupported)]);
    let error = kernel.dump(chain.table, &claims()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert_eq!(error.to_string(), "iptables-nft-save is not installed");
}

#[test]
fn a_hung_tool_is_killed_at_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    for tool in ["iptables-nft-restore", "iptables-nft-save"] {
        write_tool(&directory, tool, "sleep 100");
    }
    let mut kernel = kernel_with_tools(Variant::Nft, &directory);
    let began = Instant::now();
    let chain = key(IpFamily::V4, Table::Nat, SHARED);
    let results = kernel.apply(&[Op::CreateChain(chain)]);
    assert_eq!(kinds(&results), [Some(ErrorKind::Unknown)], "{results:#?}");
    assert_eq!(kernel.dump(chain.table, &claims()).unwrap_err().kind, ErrorKind::TimedOut);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn tools_without_a_suffix_are_used_where_there_are_no_others() {
    let directory = tempfile::tempdir().unwrap();
    write_tool(&directory, "iptables-save", "echo '*nat'; echo ':KUBE-SERVICES - [0:0]'; echo COMMIT");
    let mut kernel = kernel_with_tools(Variant::Legacy, &directory);
    let table = TableId { family: IpFamily::V4, table: Table::Nat };
    assert_eq!(found(&mut kernel, table), [(SHARED, FoundChain::Shared(vec![]))]);
}

#[test]
fn a_dump_that_was_cut_off_is_no_dump() {
    let directory = tempfile::tempdir().unwrap();
    write_tool(&directory, "iptables-nft-save", "echo '*nat'; echo ':KUBE-SERVICES - [0:0]'");
    let mut kernel = kernel_with_tools(Variant::Nft, &directory);
    let table = TableId { family: IpFamily::V4, table: Table::Nat };
    assert_eq!(kernel.dump(table, &claims()).unwrap_err().kind, ErrorKind::Transient);
}

#[test]
fn a_tool_killed_between_sections_leaves_open_only_what_it_had_not_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    write_tool(&directory, "iptables-nft-restore", "echo '# committed 0'; kill -9 $$");
    let mut kernel = kernel_with_tools(Variant::Nft, &directory);
    let chains = Table::SERVING.map(|table| key(IpFamily::V4, table, SHARED));
    let results = kernel.apply(&chains.map(Op::CreateChain));
    assert_eq!(kinds(&results), [None, Some(ErrorKind::Unknown)], "{results:#?}");
}

#[rstest]
#[case("iptables-nft", Variant::Nft)]
#[case("ip6tables-nft", Variant::Nft)]
#[case("iptables-legacy", Variant::Legacy)]
#[case("ip6tables-legacy", Variant::Legacy)]
fn the_variant_that_kubelet_uses_is_found(#[case] tool: &str, #[case] variant: Variant) {
    in_namespace(|| {
        assert_eq!(Variant::detect(&[]), Variant::Nft);
        shell(&format!("{tool} -w 30 -t mangle -N KUBE-IPTABLES-HINT"));
        assert_eq!(Variant::detect(&[]), variant);
    });
}

#[test]
fn tables_that_cannot_be_read_are_named_where_the_variant_is_a_guess() {
    in_namespace(|| {
        shell("iptables-legacy -w 30 -t mangle -N KUBE-IPTABLES-HINT");
        let log = |capabilities: &str| {
            let portolan = std::process::Command::new("setpriv")
                .args([&format!("--bounding-set={capabilities}"), env!("CARGO_BIN_EXE_portolan")])
                .args(["sync", "--once", "--dry-run", "--hostname-override", "node1"])
                .args(["--manifests", concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo")])
                .output()
                .unwrap();
            String::from_utf8(portolan.stderr).unwrap()
        };
        let guess = "it is a guess which iptables this node uses";
        let without = log("-net_raw");
        assert!(without.lines().any(|line| line.contains(guess) && line.contains("iptables-legacy-save")), "{without}");
        let with = log("+net_raw");
        assert!(with.contains("legacy") && !with.contains(guess), "{with}");
    });
}

#[test]
fn a_negated_source_keeps_its_meaning() {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(Variant::Legacy);
        let chain = key(IpFamily::V4, Table::Nat, PRIVATE);
        let none = Rule { source: Some(Not::IsNot("0.0.0.0/0".parse().unwrap())), ..Rule::default() };
        assert_done(&kernel.apply(&[replace(chain, std::slice::from_ref(&none))]));
        assert_eq!(found(&mut kernel, chain.table), [(PRIVATE, FoundChain::Private(digest_of(&[none])))]);
    });
}
