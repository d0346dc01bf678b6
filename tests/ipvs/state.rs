//! Everything of the program's that the kernel of a node holds, as other programs tell it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::netns::Netns;
use crate::netns::ipvs::VirtualServer;
use crate::traffic::program::Variant;

/// The tools that save rules, one for each family.
pub(super) const TOOLS: [&str; 2] = ["iptables", "ip6tables"];

/// What a node's kernel holds. Order counts only where the kernel looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Chains and rules of both families, with their table; rules in the order of their chain.
    pub(super) rules: Vec<String>,
    /// Sets with their types, and their elements.
    pub(super) sets: BTreeSet<String>,
    /// Virtual servers, without the numbers of connections.
    pub(super) servers: Vec<VirtualServer>,
    /// Addresses of the dummy link, if there is one.
    pub(super) addresses: Option<BTreeSet<IpAddr>>,
}

impl State {
    /// What is there now.
    pub(super) fn of(node: &Netns, variant: Variant) -> State {
        let mut servers = node.virtual_servers();
        servers
            .iter_mut()
            .flat_map(|server| &mut server.servers)
            .for_each(|real| (real.active, real.inactive) = (0, 0));
        State {
            rules: TOOLS.iter().flat_map(|tool| rules(tool, &variant.save(node, tool))).collect(),
            sets: node.exec(&["ipset", "save"]).lines().map(set_line).collect(),
            servers,
            addresses: node.addresses_of("kube-ipvs0"),
        }
    }

    /// The same with the rules of built-in chains in alphabetical order. After a change of the mode, jumps that both modes make stand
    /// behind those that were added.
    pub(super) fn whatever_the_order_of_jumps(mut self) -> State {
        let built_in =
            |rule: &String| rule.split(' ').nth(3).is_some_and(|chain| !chain.contains('-')).then(|| rule.clone());
        self.rules.sort_by_key(built_in);
        self
    }

    /// Panics with what differs, if anything does.
    pub(super) fn assert_same(&self, other: &State, what: &str) {
        let mut report = String::new();
        let mut compare = |part: &str, here: Vec<String>, there: Vec<String>| {
            let (here_set, there_set): (BTreeSet<_>, BTreeSet<_>) = (here.iter().collect(), there.iter().collect());
            here_set.difference(&there_set).for_each(|line| report.push_str(&format!("only here:  {part} {line}\n")));
            there_set.difference(&here_set).for_each(|line| report.push_str(&format!("only there: {part} {line}\n")));
            if here_set == there_set {
                let first = here.iter().zip(&there).find(|(here, there)| here != there);
                first.into_iter().for_each(|pair| report.push_str(&format!("{part} in another order: {pair:?}\n")));
            }
        };
        let texts = |state: &State| {
            let servers = state.servers.iter().map(|server| format!("{server:?}")).collect();
            let addresses = state.addresses.iter().flatten().map(IpAddr::to_string).collect();
            let link = vec![format!("{}", state.addresses.is_some())];
            [state.rules.clone(), state.sets.iter().cloned().collect(), servers, addresses, link]
        };
        let parts = ["rule", "set", "virtual server", "address", "link"];
        for ((part, here), there) in parts.into_iter().zip(texts(self)).zip(texts(other)) {
            compare(part, here, there);
        }
        assert!(report.is_empty(), "{what}:\n{report}");
    }
}

/// The chains that are not built in, and all rules: one line each, by chain. Not KUBE-FIREWALL, which is the kubelet's too, and is
/// left where it was made once.
fn rules(tool: &str, save: &str) -> Vec<String> {
    let mut table = "";
    let mut lines = Vec::new();
    for line in save.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if line.contains("KUBE-FIREWALL") {
            continue;
        } else if line.starts_with("-A") || line.starts_with(':') && line.contains(" - ") {
            let line = line.split(" [").next().unwrap_or(line);
            let chain = line.trim_start_matches("-A ").trim_start_matches(':').split(' ').next().unwrap_or_default();
            lines.push((format!("{table} {chain}"), format!("{tool} {table} {line}")));
        }
    }
    // Stable, so that the order within a chain stays. Only of this one's rules each stands for itself.
    lines.sort_by(|(one, _), (other, _)| one.cmp(other));
    lines.chunk_by_mut(|(one, _), (other, _)| one == other).for_each(|chain| {
        if chain[0].0.ends_with("KUBE-IPVS-OUT-FILTER") {
            chain.sort();
        }
    });
    lines.into_iter().map(|(_, line)| line).collect()
}

/// A set without what the kernel chooses itself: the size and the seed of its table.
fn set_line(line: &str) -> String {
    match line.strip_prefix("create ") {
        Some(rest) => {
            let words: Vec<&str> = rest.split(' ').collect();
            let maximum = words.iter().skip_while(|word| **word != "maxelem").nth(1).unwrap_or(&"");
            format!("create {} {} {maximum}", words[0], words.get(1).unwrap_or(&""))
        }
        None => line.to_owned(),
    }
}
