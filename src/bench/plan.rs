//! What is to be measured, and in which order.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::iptables::Layout;

/// A way to serve Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// iptables mode with `iptables-nft`.
    IptablesNft,
    /// iptables mode with `iptables-legacy`.
    IptablesLegacy,
    /// iptables mode in the compact layout with `iptables-nft`.
    IptablesNftCompact,
    /// iptables mode in the compact layout with `iptables-legacy`.
    IptablesLegacyCompact,
    /// IPVS mode, with whichever iptables the node uses for its few rules, or the other one where that does not work.
    Ipvs,
}

impl Mode {
    /// All modes, in the order in which they are shown.
    pub const ALL: [Mode; 5] =
        [Mode::IptablesNft, Mode::IptablesLegacy, Mode::IptablesNftCompact, Mode::IptablesLegacyCompact, Mode::Ipvs];
    /// Modes that can be asked for by name; those of other layouts are asked for by the layout.
    pub const NAMED: [Mode; 3] = [Mode::IptablesNft, Mode::IptablesLegacy, Mode::Ipvs];

    /// As it is written in reports, and on the command line if it is [named](Mode::NAMED).
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::IptablesNft => "iptables-nft",
            Mode::IptablesLegacy => "iptables-legacy",
            Mode::IptablesNftCompact => "iptables-nft-compact",
            Mode::IptablesLegacyCompact => "iptables-legacy-compact",
            Mode::Ipvs => "ipvs",
        }
    }

    /// The same mode in another layout of the rules; IPVS mode has only one.
    pub fn with_layout(self, layout: Layout) -> Mode {
        match (self, layout) {
            (Mode::IptablesNft | Mode::IptablesNftCompact, Layout::KubeProxy) => Mode::IptablesNft,
            (Mode::IptablesNft | Mode::IptablesNftCompact, Layout::Compact) => Mode::IptablesNftCompact,
            (Mode::IptablesLegacy | Mode::IptablesLegacyCompact, Layout::KubeProxy) => Mode::IptablesLegacy,
            (Mode::IptablesLegacy | Mode::IptablesLegacyCompact, Layout::Compact) => Mode::IptablesLegacyCompact,
            (Mode::Ipvs, _) => Mode::Ipvs,
        }
    }

    /// How it lays out the rules for Services, if it has such rules.
    pub fn layout(self) -> Option<Layout> {
        match self {
            Mode::IptablesNft | Mode::IptablesLegacy => Some(Layout::KubeProxy),
            Mode::IptablesNftCompact | Mode::IptablesLegacyCompact => Some(Layout::Compact),
            Mode::Ipvs => None,
        }
    }

    /// The tools that it can be measured with, the first that work. `node`: those that the rest of the node uses.
    pub fn tools(self, node: Tools) -> Vec<Tools> {
        match (self, node) {
            (Mode::IptablesNft | Mode::IptablesNftCompact, _) => vec![Tools::Nft],
            (Mode::IptablesLegacy | Mode::IptablesLegacyCompact, _) => vec![Tools::Legacy],
            (Mode::Ipvs, Tools::Nft) => vec![Tools::Nft, Tools::Legacy],
            (Mode::Ipvs, Tools::Legacy) => vec![Tools::Legacy, Tools::Nft],
        }
    }

    /// The modes that a word stands for: one, or both variants for `iptables`.
    pub fn parse(word: &str) -> Option<Vec<Mode>> {
        match word {
            "iptables" => Some(vec![Mode::IptablesNft, Mode::IptablesLegacy]),
            _ => Mode::NAMED.into_iter().find(|mode| mode.as_str() == word).map(|mode| vec![mode]),
        }
    }
}

/// Which iptables programs are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tools {
    /// `iptables-nft` and its kin.
    Nft,
    /// `iptables-legacy` and its kin.
    Legacy,
}

impl Tools {
    /// As it is written in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Tools::Nft => "nft",
            Tools::Legacy => "legacy",
        }
    }
}

/// A question that is answered by measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// How long until all Services are programmed in an empty kernel.
    FirstSync,
    /// How long one change takes, from its arrival to the kernel's answer.
    OneChange,
    /// What a steady stream of changes costs, and how far the kernel lags behind.
    Churn,
    /// How long a new connection takes to be established.
    FirstPacket,
    /// How many requests per second pass, and what they cost.
    Connections,
    /// How much memory the proxy holds.
    Memory,
}

impl Scenario {
    /// All scenarios, in the order in which they are shown.
    pub const ALL: [Scenario; 6] = [
        Scenario::FirstSync,
        Scenario::OneChange,
        Scenario::Churn,
        Scenario::FirstPacket,
        Scenario::Connections,
        Scenario::Memory,
    ];

    /// As it is written on the command line and in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Scenario::FirstSync => "first-sync",
            Scenario::OneChange => "one-change",
            Scenario::Churn => "churn",
            Scenario::FirstPacket => "first-packet",
            Scenario::Connections => "connections",
            Scenario::Memory => "memory",
        }
    }

    /// The scenario of this name.
    pub fn parse(word: &str) -> Option<Scenario> {
        Scenario::ALL.into_iter().find(|scenario| scenario.as_str() == word)
    }
}

/// How much is measured in one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// Which questions are asked.
    pub scenarios: Vec<Scenario>,
    /// Endpoints of each Service.
    pub endpoints: u32,
    /// Seconds for each part that measures for a time: each kind of change, the stream of changes, new connections, and requests with
    /// and without keep-alive.
    pub seconds: f64,
    /// The most changes of each kind.
    pub changes: u32,
    /// Changes per second in a stream of changes.
    pub rate: f64,
}

impl Effort {
    /// For how long each part measures.
    pub fn duration(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds).unwrap_or_default()
    }

    /// Whether this question is asked.
    pub fn asks(&self, scenario: Scenario) -> bool {
        self.scenarios.contains(&scenario)
    }
}

/// What a benchmark measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Modes side by side.
    pub modes: Vec<Mode>,
    /// Numbers of Services.
    pub services: Vec<u32>,
    /// How often everything is measured.
    pub repeat: u32,
    /// How much is measured each time.
    pub effort: Effort,
}

/// One measurement: a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which repetition it belongs to, from 0.
    pub round: u32,
    /// With so many Services.
    pub services: u32,
    /// In this mode.
    pub mode: Mode,
}

impl Plan {
    /// All runs of these modes. Modes alternate, and each round begins with another one, so that what changes on the machine meanwhile
    /// meets all of them alike.
    pub fn runs(&self, modes: &[Mode]) -> Vec<Run> {
        let mut runs = Vec::new();
        for round in 0..self.repeat {
            for services in &self.services {
                let first = round as usize % modes.len().max(1);
                let order = modes.iter().cycle().skip(first).take(modes.len());
                runs.extend(order.map(|mode| Run { round, services: *services, mode: *mode }));
            }
        }
        runs
    }
}

/// What the process of a run is told, as JSON on its standard input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The number of the process that waits for it.
    pub parent: i32,
    /// The mode to measure.
    pub mode: Mode,
    /// The tools to use.
    pub tools: Tools,
    /// With so many Services; `None`: only say whether this kernel can do the mode.
    pub services: Option<u32>,
    /// How much is measured.
    pub effort: Effort,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(services: &[u32], repeat: u32) -> Plan {
        let effort = Effort { scenarios: Scenario::ALL.to_vec(), endpoints: 2, seconds: 0.5, changes: 3, rate: 10.0 };
        Plan { modes: Mode::ALL.to_vec(), services: services.to_vec(), repeat, effort }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for mode in Mode::NAMED {
            assert_eq!(Mode::parse(mode.as_str()), Some(vec![mode]));
        }
        for mode in Mode::ALL {
            assert_eq!(mode.layout().map_or(mode, |layout| mode.with_layout(layout)), mode);
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
        }
        for scenario in Scenario::ALL {
            assert_eq!(Scenario::parse(scenario.as_str()), Some(scenario));
            assert_eq!(serde_json::to_value(scenario).unwrap(), scenario.as_str());
        }
        assert_eq!(Mode::parse("iptables").unwrap(), [Mode::IptablesNft, Mode::IptablesLegacy]);
        assert_eq!(Mode::Ipvs.tools(Tools::Legacy), [Tools::Legacy, Tools::Nft]);
        assert_eq!(Mode::IptablesNft.tools(Tools::Legacy), [Tools::Nft]);
        assert_eq!((Mode::parse("nftables"), Scenario::parse("")), (None, None));
    }

    #[test]
    fn modes_alternate_and_each_round_begins_with_another() {
        let runs = plan(&[10, 100], 2).runs(&[Mode::IptablesNft, Mode::Ipvs]);
        let shown: Vec<_> = runs.iter().map(|run| (run.round, run.services, run.mode.as_str())).collect();
        let first = [(0, 10, "iptables-nft"), (0, 10, "ipvs"), (0, 100, "iptables-nft"), (0, 100, "ipvs")];
        let second = [(1, 10, "ipvs"), (1, 10, "iptables-nft"), (1, 100, "ipvs"), (1, 100, "iptables-nft")];
        assert_eq!(shown, [first, second].concat());
        assert_eq!(plan(&[10], 3).runs(&[]), []);
    }
}
