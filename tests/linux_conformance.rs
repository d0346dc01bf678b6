//! One suite for the fake kernel and the real one: the same transactions give the same results and leave the same state.
//!
//! Each case is a list of transactions. After each, what every operation returned and what a dump shows have to be the same
//! on the fake, on iptables-nft and on iptables-legacy. So the fake is never kinder than the kernel.

mod linux_support;

use std::sync::Arc;

use linux_support::{JUMP, OTHER, OUTPUT, PRIVATE, SHARED, claims, in_namespace, kernel, key, rule_key};
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::rule::Target;
use portolan::kernel::{
    ChainBody, ChainKey, ChainName, ErrorKind, FoundChain, Kernel, Op, Placement, Rule, RuleKey, Table, TableId,
};
use portolan::linux::Variant;
use portolan::net::IpFamily;

fn jump(target: ChainName) -> Rule {
    Rule { target: Some(Target::Jump(target)), ..Rule::default() }
}

fn plain(target: Target) -> Rule {
    Rule { target: Some(target), ..Rule::default() }
}

fn replace(chain: ChainKey, rules: &[Rule]) -> Op {
    Op::ReplaceChain(chain, Arc::new(ChainBody::of(rules)))
}

/// What one operation returned.
type Outcome = Option<ErrorKind>;

/// A list of transactions with what each operation is expected to return. `None`: done.
type Case = (&'static str, Vec<Vec<(Op, Outcome)>>);

fn cases(family: IpFamily) -> Vec<Case> {
    use ErrorKind::{Aborted, Busy, Exists, NotFound};
    let nat = |name| key(family, Table::Nat, name);
    let filter = |name| key(family, Table::Filter, name);
    let to_private = |chain: ChainKey| rule_key(chain, "-m comment --comment \"a\" -j KUBE-SVC-AAAAAAAAAAAAAAAA");
    let accept = |chain: ChainKey| rule_key(chain, "-j ACCEPT");
    let returns = |chain: ChainKey| rule_key(chain, "-j RETURN");
    let head = |rule: RuleKey| Op::InsertRule(rule, Placement::Head);
    let tail = |rule: RuleKey| Op::InsertRule(rule, Placement::Tail);
    let done = |ops: Vec<Op>| ops.into_iter().map(|op| (op, None)).collect::<Vec<_>>();
    vec![
        (
            "a chain is created, and not twice",
            vec![done(vec![Op::CreateChain(nat(SHARED))]), vec![(Op::CreateChain(nat(SHARED)), Some(Exists))]],
        ),
        (
            "a chain is replaced whether it exists or not",
            vec![
                done(vec![replace(nat(PRIVATE), &[plain(Target::Accept)])]),
                done(vec![replace(nat(PRIVATE), &[plain(Target::Return), plain(Target::Accept)])]),
                done(vec![replace(nat(PRIVATE), &[])]),
            ],
        ),
        (
            "head and tail",
            vec![
                done(vec![Op::CreateChain(nat(SHARED)), tail(accept(nat(SHARED))), head(returns(nat(SHARED)))]),
                done(vec![head(rule_key(nat(SHARED), "-s 10.0.0.1/32 -j RETURN"))])
                    .into_iter()
                    .filter(|_| family == IpFamily::V4)
                    .collect(),
            ],
        ),
        (
            "a rule can stand twice and is removed once",
            vec![
                done(vec![Op::CreateChain(nat(SHARED)), head(accept(nat(SHARED))), head(accept(nat(SHARED)))]),
                done(vec![Op::DeleteRule(accept(nat(SHARED)))]),
                done(vec![Op::DeleteRule(accept(nat(SHARED)))]),
                vec![(Op::DeleteRule(accept(nat(SHARED))), Some(NotFound))],
            ],
        ),
        (
            "a rule in a chain that is not there",
            vec![
                vec![(head(accept(nat(SHARED))), Some(NotFound))],
                vec![(Op::DeleteRule(accept(nat(SHARED))), Some(NotFound))],
            ],
        ),
        (
            "a jump to a chain that is not there spoils the transaction",
            vec![
                done(vec![Op::CreateChain(nat(SHARED))]),
                vec![
                    (replace(nat(OTHER), &[plain(Target::Accept)]), Some(Aborted)),
                    (head(to_private(nat(SHARED))), Some(NotFound)),
                ],
            ],
        ),
        (
            "a jump to a chain of the same transaction",
            vec![done(vec![
                head(to_private(nat(SHARED))),
                replace(nat(PRIVATE), &[jump(OTHER)]),
                replace(nat(OTHER), &[plain(Target::Accept)]),
                Op::CreateChain(nat(SHARED)),
            ])],
        ),
        (
            "a chain is removed with the last rule that leads to it",
            vec![
                done(vec![
                    Op::CreateChain(nat(SHARED)),
                    replace(nat(PRIVATE), &[jump(OTHER)]),
                    replace(nat(OTHER), &[plain(Target::Accept)]),
                    head(to_private(nat(SHARED))),
                ]),
                done(vec![
                    Op::DeleteChain(nat(OTHER)),
                    Op::DeleteChain(nat(PRIVATE)),
                    Op::DeleteRule(to_private(nat(SHARED))),
                ]),
            ],
        ),
        (
            "a chain in use stays",
            vec![
                done(vec![Op::CreateChain(nat(SHARED)), replace(nat(PRIVATE), &[]), head(to_private(nat(SHARED)))]),
                vec![(Op::DeleteChain(nat(PRIVATE)), Some(Busy))],
            ],
        ),
        ("a chain that is not there cannot be removed", vec![vec![(Op::DeleteChain(nat(PRIVATE)), Some(NotFound))]]),
        (
            "a shared chain is rewritten",
            vec![
                done(vec![Op::CreateChain(nat(SHARED)), head(accept(nat(SHARED)))]),
                done(vec![
                    Op::RewriteChain(nat(SHARED), vec![returns(nat(SHARED)), to_private(nat(SHARED))]),
                    replace(nat(PRIVATE), &[]),
                ]),
            ],
        ),
        (
            "a failed section of one table undoes nothing of an earlier one",
            vec![
                done(vec![Op::CreateChain(filter(SHARED)), Op::CreateChain(nat(SHARED))]),
                vec![
                    (head(returns(filter(SHARED))), None),
                    (Op::DeleteRule(accept(nat(SHARED))), Some(NotFound)),
                    (head(returns(nat(SHARED))), Some(Aborted)),
                ],
            ],
        ),
        (
            "what comes after a failed section is not done",
            vec![
                done(vec![
                    Op::CreateChain(filter(SHARED)),
                    Op::CreateChain(nat(SHARED)),
                    head(returns(filter(SHARED))),
                ]),
                vec![
                    (Op::DeleteRule(returns(filter(SHARED))), Some(Aborted)),
                    (Op::DeleteRule(accept(nat(SHARED))), Some(NotFound)),
                ],
            ],
        ),
        (
            "jumps from host chains",
            vec![
                done(vec![Op::CreateChain(nat(SHARED)), head(rule_key(nat(OUTPUT), JUMP))]),
                done(vec![Op::DeleteRule(rule_key(nat(OUTPUT), JUMP))]),
            ],
        ),
    ]
}

/// A dump as text. Chains in no order; rules as they stand.
fn state(kernel: &mut dyn Kernel, family: IpFamily) -> Vec<(TableId, ChainName, FoundChain)> {
    let mut all = Vec::new();
    for table in TableId::serving().filter(|table| table.family == family) {
        let dump = kernel.dump(table, &claims()).expect("the table can be read");
        all.extend(dump.chains.into_iter().map(|(name, found)| (table, name, found)));
    }
    all.retain(|(_, _, found)| *found != FoundChain::Host(Vec::new()));
    all.sort_by_key(|(table, name, _)| (*table, *name));
    all
}

fn conforms(family: IpFamily, variant: Variant) {
    let mut problems = Vec::new();
    for (name, transactions) in cases(family) {
        in_namespace(|| {
            let (mut real, _directory) = kernel(variant);
            let mut fake = FakeKernel::default();
            for (at, transaction) in transactions.iter().enumerate() {
                let ops: Vec<Op> = transaction.iter().map(|(op, _)| op.clone()).collect();
                let expected: Vec<Outcome> = transaction.iter().map(|(_, outcome)| *outcome).collect();
                let kinds = |kernel: &mut dyn Kernel| -> Vec<Outcome> {
                    kernel.apply(&ops).into_iter().map(|result| result.err().map(|error| error.kind)).collect()
                };
                let (found, faked) = (kinds(&mut real), kinds(&mut fake));
                if found != expected || faked != expected {
                    problems.push(format!("{name:?} [{at}]: real {found:?}, fake {faked:?}, expected {expected:?}"));
                }
                let (real, fake) = (state(&mut real, family), state(&mut fake, family));
                if real != fake {
                    problems.push(format!("{name:?} [{at}]: real {real:?}, fake {fake:?}"));
                }
            }
        });
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn the_fake_behaves_like_iptables_nft() {
    conforms(IpFamily::V4, Variant::Nft);
}

#[test]
fn the_fake_behaves_like_ip6tables_nft() {
    conforms(IpFamily::V6, Variant::Nft);
}

#[test]
fn the_fake_behaves_like_iptables_legacy() {
    conforms(IpFamily::V4, Variant::Legacy);
}

#[test]
fn the_fake_behaves_like_ip6tables_legacy() {
    conforms(IpFamily::V6, Variant::Legacy);
}
