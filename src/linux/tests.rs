//! Restore input, and what the tools say about it.

use std::sync::Arc;

use rstest::rstest;

use crate::kernel::rule::{Rule, Target};
use crate::kernel::{ChainBody, ChainKey, ChainName, ErrorKind, Op, Placement, RuleKey, Table};
use crate::linux::failure::{self, Run};
use crate::linux::script::{Draft, Script};
use crate::net::IpFamily;

fn chain(table: Table, name: &str) -> ChainKey {
    ChainKey::new(IpFamily::V4, table, ChainName::new(name).unwrap())
}

fn rule(table: Table, name: &str, spec: &str) -> RuleKey {
    RuleKey { chain: chain(table, name), spec: spec.into() }
}

/// One of each, in both tables.
fn transaction() -> Vec<Op> {
    let body = ChainBody::of(&[Rule { target: Some(Target::Accept), ..Rule::default() }]);
    let mut ops = Vec::new();
    for table in [Table::Nat, Table::Filter] {
        ops.push(Op::DeleteChain(chain(table, "GONE")));
        ops.push(Op::DeleteRule(rule(table, "S", "-p tcp")));
        ops.push(Op::InsertRule(rule(table, "S", "-p udp"), Placement::Tail));
        ops.push(Op::InsertRule(rule(table, "S", "-p sctp"), Placement::Head));
        ops.push(Op::RewriteChain(chain(table, "R"), vec![rule(table, "R", "-j NEW")]));
        ops.push(Op::ReplaceChain(chain(table, "P"), Arc::new(body.clone())));
        ops.push(Op::CreateChain(chain(table, "NEW")));
    }
    ops
}

#[test]
fn a_transaction_is_written_in_the_order_that_lets_nothing_through() {
    let script = Draft::of(&transaction(), IpFamily::V4).script();
    let adding = ":P - [0:0]\n:R - [0:0]\n-N NEW\n-A P -j ACCEPT\n-A R -j NEW\n";
    let expected = format!(
        "*filter\n{adding}-I S -p sctp\n-A S -p udp\nCOMMIT\n# committed 0\n\
         *nat\n{adding}-D S -p tcp\n-I S -p sctp\n-A S -p udp\n-F GONE\n-X GONE\nCOMMIT\n# committed 1\n\
         *filter\n-D S -p tcp\n-F GONE\n-X GONE\nCOMMIT\n# committed 2\n"
    );
    assert_eq!(script.text, expected);
    assert_eq!(script.origins.len(), expected.lines().count());
    assert_eq!(Draft::of(&transaction(), IpFamily::V6).script(), Script::default());
}

fn judge(ops: &[Op], stderr: &str, committed: usize, exited: bool) -> Vec<Option<ErrorKind>> {
    let script = Draft::of(ops, IpFamily::V4).script();
    let run = Run { program: "iptables-restore", stderr, committed, exited };
    let mut results = failure::results(&script, &run);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result.err().map(|error| error.kind)).collect()
}

/// Two operations in one section: lines 2 and 3, `COMMIT` is line 4.
#[rstest]
#[case::legacy_mute("iptables-restore: line 3 failed\n", ErrorKind::Aborted, ErrorKind::NotFound)]
#[case::nft_rule(
    "iptables-nft-restore: line 3 failed: Bad rule (does a matching rule exist in that chain?).\n",
    ErrorKind::Aborted,
    ErrorKind::NotFound
)]
#[case::nft_kernel(
    "iptables-nft-restore v1.8.9 (nf_tables): \nline 2: RULE_APPEND failed (Invalid argument): rule in chain S\n",
    ErrorKind::Rejected,
    ErrorKind::Aborted
)]
#[case::nft_both(
    "iptables-nft-restore v1.8.9 (nf_tables): \nline 2: CHAIN_DEL failed (Device or resource busy): chain S\n\
    line 3: RULE_APPEND failed (No such file or directory): rule in chain S\n",
    ErrorKind::Busy,
    ErrorKind::Rejected
)]
#[case::nft_missing_target(
    "iptables-nft-restore v1.8.9 (nf_tables): Chain 'NOEX' does not exist\nError occurred at line: 4\n\
    Try `iptables-nft-restore -h' or 'iptables-nft-restore --help' for more information.\n",
    ErrorKind::Aborted,
    ErrorKind::NotFound
)]
#[case::legacy_missing_target(
    "iptables-restore v1.8.9 (legacy): Couldn't load target `NOEX':No such file or directory\n\n\
    Error occurred at line: 3\n",
    ErrorKind::Aborted,
    ErrorKind::NotFound
)]
#[case::legacy_missing_extension(
    "iptables-restore v1.8.9 (legacy): Couldn't load target `DNAT':No such file or directory\n\n\
    Error occurred at line: 3\n",
    ErrorKind::Aborted,
    ErrorKind::Unsupported
)]
#[case::legacy_commit("iptables-restore: line 4 failed\n", ErrorKind::Aborted, ErrorKind::Aborted)]
#[case::lock(
    "Another app is currently holding the xtables lock. Stopped waiting after 1s.\n",
    ErrorKind::Transient,
    ErrorKind::Transient
)]
#[case::rights(
    "iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission \
     denied (you must be root)\n",
    ErrorKind::Denied,
    ErrorKind::Denied
)]
#[case::module(
    "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat'\nError occurred at line: 1\n",
    ErrorKind::Unsupported,
    ErrorKind::Unsupported
)]
#[case::too_large("iptables-nft-restore: line 3 failed: Message too long.\n", ErrorKind::Aborted, ErrorKind::Aborted)]
#[case::mute("", ErrorKind::Aborted, ErrorKind::Aborted)]
fn the_words_of_the_tools_are_understood(#[case] stderr: &str, #[case] first: ErrorKind, #[case] second: ErrorKind) {
    let ops = [
        Op::InsertRule(rule(Table::Nat, "S", "-p tcp"), Placement::Head),
        Op::InsertRule(rule(Table::Nat, "S", "-j NOEX"), Placement::Tail),
    ];
    assert_eq!(judge(&ops, stderr, 0, true), [Some(first), Some(second)]);
}

#[test]
fn what_was_committed_before_the_failure_is_done() {
    let ops = Table::SERVING.map(|table| Op::CreateChain(chain(table, "NEW")));
    // Lines: 1 *filter, 2 -N, 3 COMMIT, 4 comment, 5 *nat, 6 -N.
    assert_eq!(judge(&ops, "iptables-restore: line 6 failed\n", 0, true), [None, Some(ErrorKind::Exists)]);
    assert_eq!(
        judge(&ops, "iptables-restore: line 2 failed\n", 0, true),
        [Some(ErrorKind::Exists), Some(ErrorKind::Aborted)]
    );
    let lock = "Another app is currently holding the xtables lock. Stopped waiting after 5s.\n";
    assert_eq!(judge(&ops, lock, 1, true), [None, Some(ErrorKind::Transient)]);
    assert_eq!(judge(&ops, "what?", 0, true), [Some(ErrorKind::Unknown); 2]);
    assert_eq!(judge(&ops, "", 1, false), [None, Some(ErrorKind::Unknown)]);
}

#[test]
fn an_error_names_the_rule_and_quotes_the_tool() {
    let ops = [Op::DeleteRule(rule(Table::Nat, "S", "-p tcp"))];
    let script = Draft::of(&ops, IpFamily::V4).script();
    let stderr = "iptables-nft-restore: line 2 failed: Bad rule (does a matching rule exist in that chain?).\n";
    let run = Run { program: "iptables-nft-restore", stderr, committed: 0, exited: true };
    let (_, result) = failure::results(&script, &run).remove(0);
    let expected = "iptables-nft-restore: Bad rule (does a matching rule exist in that chain?). [-D S -p tcp]";
    assert_eq!(result.unwrap_err().to_string(), expected);
}
