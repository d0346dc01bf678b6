//! What a reader has to know of the machine.

use serde::{Deserialize, Serialize};

use crate::linux::sysctl;

/// Modules that do the work of the modes.
const MODULES: &[&str] = &[
    "ip_tables",
    "iptable_nat",
    "nf_tables",
    "nft_compat",
    "nf_nat",
    "nf_conntrack",
    "xt_conntrack",
    "xt_comment",
    "xt_statistic",
    "ip_vs",
    "ip_vs_rr",
    "ip_set",
    "xt_set",
    "dummy",
    "veth",
    "br_netfilter",
];

/// Settings that change what is measured.
const SETTINGS: &[&str] = &[
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_buckets",
    "net/ipv4/vs/conntrack",
    "net/ipv4/vs/conn_reuse_mode",
    "net/ipv4/vs/expire_nodest_conn",
    "net/ipv4/vs/run_estimation",
    "net/ipv4/ip_local_port_range",
    "net/core/somaxconn",
    "net/core/netdev_max_backlog",
    "kernel/sched_autogroup_enabled",
];

/// The machine, as its kernel tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The kernel's release and build.
    pub kernel: String,
    /// The machine's architecture.
    pub machine: String,
    /// The model of its processors.
    pub processor: String,
    /// How many of them this process may use.
    pub processors: usize,
    /// How their frequency is chosen, if that is known.
    pub governor: Option<String>,
    /// Bytes of memory.
    pub memory: u64,
    /// The load average at the beginning.
    pub load: String,
    /// Modules of interest that are loaded. What is compiled into the kernel is not among them.
    pub modules: Vec<String>,
    /// Settings of interest, name and value, as far as they exist.
    pub settings: Vec<(String, String)>,
}

impl Facts {
    /// Reads them. What cannot be read stays empty.
    pub fn read() -> Facts {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let uname = rustix::system::uname();
        let modules = text("/proc/modules");
        let loaded: Vec<&str> = modules.lines().filter_map(|line| line.split(' ').next()).collect();
        let governor = text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Facts {
            kernel: format!("{} {}", uname.release().to_string_lossy(), uname.version().to_string_lossy()),
            machine: uname.machine().to_string_lossy().into_owned(),
            processor: value_of(&text("/proc/cpuinfo"), "model name").unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            governor: (!governor.is_empty()).then(|| governor.trim().to_owned()),
            memory: memory(&text("/proc/meminfo")),
            load: text("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            modules: MODULES.iter().filter(|name| loaded.contains(name)).map(|name| (*name).to_owned()).collect(),
            settings: SETTINGS
                .iter()
                .filter_map(|name| Some((name.replace('/', "."), sysctl::read(name).ok()?)))
                .collect(),
        }
    }
}

/// The value behind a name and a colon, where it stands first.
fn value_of(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

fn memory(text: &str) -> u64 {
    let kilobytes = value_of(text, "MemTotal").and_then(|value| value.strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_behind_their_names() {
        assert_eq!(value_of("processor\t: 0\nmodel name\t: Some CPU: fast\n", "model name").unwrap(), "Some CPU: fast");
        assert_eq!(value_of("", "model name"), None);
        assert_eq!(memory("MemTotal:       24576 kB\nMemFree: 1 kB\n"), 24576 * 1024);
        assert_eq!(memory("MemTotal: much"), 0);
    }

    #[test]
    fn this_machine_has_a_kernel_and_a_processor() {
        let facts = Facts::read();
        assert!(!facts.kernel.is_empty() && facts.processors > 0 && facts.memory > 0, "{facts:?}");
    }
}
