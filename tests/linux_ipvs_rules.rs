//! The rules of IPVS mode on the real kernel: it takes them, and they are read back as what was written. Virtual servers are not
//! needed for that, so that any kernel with sets will do.

mod linux_support;

use std::io::Write;
use std::process::{Command, Stdio};

use linux_support::*;
use portolan::backend::{Backend, Fragment};
use portolan::compile::{LocalDetector, NodeContext};
use portolan::iptables::IptablesBackend;
use portolan::ipvs::{IpvsBackend, IpvsSettings, Vips, render_text};
use portolan::kernel::{ChainClass, ChainKey, FoundChain, Kernel, Op, TableId};
use portolan::linux::{LinuxKernel, Variant};
use portolan::net::IpFamily;
use rstest::rstest;

fn node() -> NodeContext {
    let mut node = NodeContext::default();
    node.node_ips.v4 = Some("192.168.0.2".parse().unwrap());
    node.local_detector.v4 = Some(LocalDetector::SourceCidr("10.0.0.0/8".parse().unwrap()));
    node.local_detector.v6 = Some(LocalDetector::InterfacePrefix("veth".into()));
    node
}

fn backend() -> IpvsBackend {
    let service_cidrs = vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()];
    IpvsBackend { settings: IpvsSettings { vips: Vips::Routes { service_cidrs }, ..IpvsSettings::default() } }
}

/// Makes the sets of a family with the tool, as the text for people says it.
fn make_sets(family: IpFamily, base: &Fragment) {
    let text = render_text(family, [base]);
    let lines = text.lines().skip(1).take_while(|line| !line.starts_with('#'));
    let input: String = lines.map(|line| format!("{line}\n")).collect();
    let mut child = Command::new("ipset").arg("restore").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{input}");
}

fn write(kernel: &mut LinuxKernel, base: &Fragment, family: IpFamily) {
    let of = |chain: &ChainKey| chain.table.family == family;
    let shared = base.shared_chains.iter().filter(|chain| of(chain)).map(|chain| Op::CreateChain(*chain));
    let chains = base.chains.iter().filter(|(chain, _)| of(chain));
    let rules = base.rules.iter().filter(|(key, _)| of(&key.chain));
    let operations: Vec<Op> = shared
        .chain(chains.map(|(chain, body)| Op::ReplaceChain(*chain, body.clone().into())))
        .chain(rules.map(|(key, placement)| Op::InsertRule(key.clone(), *placement)))
        .collect();
    for (result, operation) in kernel.apply(&operations).into_iter().zip(&operations) {
        assert_eq!(result, Ok(()), "{operation}");
    }
}

#[rstest]
fn the_base_is_read_back_as_it_was_written(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let base = backend().base(&node());
        make_sets(family, &base);
        write(&mut kernel, &base, family);
        for table in TableId::serving().filter(|table| table.family == family) {
            let dump = kernel.dump(table, &backend().claims()).unwrap();
            let mut jumps = 0;
            for (name, found) in &dump.chains {
                let chain = ChainKey { table, name: *name };
                match found {
                    FoundChain::Private(digest) => {
                        let wanted = base.chains.iter().find(|(wanted, _)| *wanted == chain);
                        assert_eq!(Some(*digest), wanted.map(|(_, body)| body.digest), "{chain}");
                    }
                    FoundChain::Shared(rules) => {
                        assert!(base.shared_chains.contains(&chain) && rules.is_empty(), "{chain}");
                    }
                    FoundChain::Host(rules) => {
                        // The last one that was put in front is the first.
                        let wanted = base.rules.iter().rev().filter(|(key, _)| key.chain == chain);
                        assert_eq!(*rules, wanted.map(|(key, _)| key.spec.clone()).collect::<Vec<_>>(), "{chain}");
                        jumps += rules.len();
                    }
                }
            }
            let written = |chain: &&ChainKey| chain.table == table;
            let own = base.chains.iter().map(|(chain, _)| chain).chain(&base.shared_chains).filter(written).count();
            let found = dump.chains.iter().filter(|(_, found)| !matches!(found, FoundChain::Host(_))).count();
            assert_eq!(found, own, "{table}");
            assert_eq!(jumps, base.rules.iter().filter(|(key, _)| key.chain.table == table).count(), "{table}");
        }
    });
}

/// A node that is switched to iptables mode is rid of everything, whose sets can be destroyed then.
#[rstest]
fn iptables_mode_can_remove_all_of_it(#[values(Variant::Nft, Variant::Legacy)] variant: Variant) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(variant);
        let base = backend().base(&node());
        make_sets(IpFamily::V4, &base);
        write(&mut kernel, &base, IpFamily::V4);
        let claims = IptablesBackend::default().removable();
        for table in TableId::serving().filter(|table| table.family == IpFamily::V4) {
            let mut operations = Vec::new();
            let dump = kernel.dump(table, &claims).unwrap();
            for (name, found) in &dump.chains {
                let chain = ChainKey { table, name: *name };
                if let FoundChain::Host(rules) = found {
                    operations.extend(rules.iter().map(|spec| Op::DeleteRule(rule_key(chain, spec))));
                }
            }
            let ours = dump.chains.iter().filter(|(name, _)| claims.class(table, name) != ChainClass::Host);
            operations.extend(ours.map(|(name, _)| Op::DeleteChain(ChainKey { table, name: *name })));
            for (result, operation) in kernel.apply(&operations).into_iter().zip(&operations) {
                assert_eq!(result, Ok(()), "{operation}");
            }
        }
        shell("ipset destroy");
        let program = format!("iptables-{variant}-save");
        assert!(!shell(&format!("{program} -t nat; {program} -t filter")).contains("KUBE"));
    });
}
