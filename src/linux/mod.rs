//! The real kernel: iptables tools, netlink and `/proc/sys`, all in the network namespace of the calling thread.

#![allow(
    clippy::disallowed_methods,
    reason = "the one place for effects on the kernel: processes, and their deadlines"
)]

pub mod address;
mod apply;
pub mod command;
mod conntrack;
pub mod counters;
mod failure;
mod fingerprint;
pub mod iptables;
pub mod ipvs;
mod items;
pub mod memory;
pub mod nftables;
pub mod node;
pub mod profile;
pub mod scratch;
mod script;
pub mod sysctl;
pub mod usage;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::net::IpAddr;
use std::time::Duration;

use crate::kernel::census::Census;
use crate::kernel::{
    Claims, Connections, ErrorKind, Fingerprint, Flow, FlowQuery, ItemClaims, ItemDump, Kernel, KernelError, Op,
    RealKey, TableDump, TableId, VirtualKey,
};
use crate::net::{IpFamily, PerFamily};

pub use iptables::{Tools, Variant};

/// How long one answer of netlink may take.
const NETLINK_TIMEOUT: Duration = Duration::from_secs(10);
/// The oldest tools whose MASQUERADE knows `--random-fully`.
const RANDOM_FULLY_SINCE: [u32; 3] = [1, 6, 2];

/// How to reach the kernel.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which iptables to use; `None`: the one that the rest of the node uses.
    pub variant: Option<Variant>,
    /// The families that are needed: [`LinuxKernel::new`] fails if the nat table of one does not work.
    pub families: PerFamily<bool>,
    /// How long the tools may wait for the lock that other programs hold.
    pub lock_wait: Duration,
    /// How long a run of a tool may take, the wait for the lock included.
    pub deadline: Duration,
    /// Variables set for the tools besides the inherited ones.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for Options {
    /// Both families, kube-proxy's 5 s for the lock, and 2 min for a run.
    fn default() -> Options {
        Options {
            variant: None,
            families: PerFamily { v4: true, v6: true },
            lock_wait: Duration::from_secs(5),
            deadline: Duration::from_secs(120),
            environment: Vec::new(),
        }
    }
}

/// What the kernel and its tools can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `iptables` is 1.6.2 or newer in both families.
    pub random_fully: bool,
    /// nfacct counters can be made. Whether rules can use them, only a rule tells.
    pub packet_counters: bool,
    /// `nf_conntrack_tcp_be_liberal` is not 0.
    pub tcp_be_liberal: bool,
}

/// The kernel of the network namespace that the calling thread is in.
#[derive(Clone, Debug)]
pub struct LinuxKernel {
    tools: Tools,
    families: PerFamily<bool>,
    /// The last dump found a set that an interrupted change has left behind.
    leftovers: bool,
}

impl LinuxKernel {
    /// Chooses the tools and checks that the families work.
    pub fn new(options: Options) -> Result<LinuxKernel, KernelError> {
        let variant = options.variant.unwrap_or_else(|| Variant::detect(&options.environment));
        let tools = Tools::new(variant, options.environment, options.deadline, options.lock_wait);
        let kernel = LinuxKernel { tools, families: options.families, leftovers: false };
        for family in IpFamily::ALL.into_iter().filter(|family| options.families[*family]) {
            kernel.check_family(family)?;
        }
        Ok(kernel)
    }

    /// The tools that are used.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The same kernel, of which only these families are looked at.
    pub fn with_families(mut self, families: PerFamily<bool>) -> LinuxKernel {
        self.families = families;
        self
    }

    /// Which families this node can serve.
    pub fn supported_families(&self) -> PerFamily<bool> {
        PerFamily::from_fn(|family| self.check_family(family).is_ok())
    }

    /// Why a family can't be served, if it can't.
    pub fn check_family(&self, family: IpFamily) -> Result<(), KernelError> {
        if family == IpFamily::V6 {
            ipv6_enabled()?;
        }
        self.tools.nat_works(family)
    }

    /// Finds out what can be used in all of these families.
    pub fn probe(&self, families: PerFamily<bool>) -> Features {
        let random_fully = |family| self.tools.version(family).is_some_and(|version| version >= RANDOM_FULLY_SINCE);
        let mut wanted = IpFamily::ALL.into_iter().filter(|family| families[*family]);
        Features {
            random_fully: wanted.all(random_fully),
            packet_counters: counters::available(NETLINK_TIMEOUT),
            tcp_be_liberal: sysctl::read_number("net/netfilter/nf_conntrack_tcp_be_liberal")
                .is_ok_and(|value| value != 0),
        }
    }

    /// Creates an nfacct counter if it is missing.
    pub fn ensure_counter(&self, name: &str) -> Result<(), KernelError> {
        counters::ensure(name, NETLINK_TIMEOUT)
    }

    /// Packets counted by an nfacct counter so far.
    pub fn counter(&self, name: &str) -> Result<u64, KernelError> {
        counters::read(name, NETLINK_TIMEOUT).map(|counter| counter.packets)
    }

    /// Checks what IPVS mode needs of the kernel: see [`ipvs::requirements`].
    pub fn ipvs_requirements(&self, needs: &ipvs::Needs) -> Result<(), KernelError> {
        ipvs::requirements(self.tools.variant(), needs, NETLINK_TIMEOUT)
    }

    /// Sets the kernel up for IPVS mode: see [`ipvs::prepare`].
    pub fn prepare_ipvs(&self, preparation: &ipvs::Preparation) -> Result<Vec<String>, KernelError> {
        ipvs::prepare(preparation, NETLINK_TIMEOUT)
    }

    /// Calls `changed` with all addresses but those of the dummy link now and whenever they change, from a thread of its own,
    /// until the returned value is dropped.
    pub fn watch_addresses(
        &self,
        changed: impl FnMut(PerFamily<Vec<IpAddr>>) + Send + 'static,
    ) -> Result<address::AddressWatch, KernelError> {
        address::watch_addresses(NETLINK_TIMEOUT, changed)
    }
}

impl Kernel for LinuxKernel {
    fn dump(&mut self, table: TableId, claims: &Claims) -> Result<TableDump, KernelError> {
        self.tools.dump(table, claims)
    }

    fn items(&mut self, family: IpFamily, claims: &ItemClaims) -> Result<ItemDump, KernelError> {
        let found = items::dump(family, claims, NETLINK_TIMEOUT)?;
        self.leftovers |= found.leftovers;
        Ok(found.dump)
    }

    fn census(&mut self, families: PerFamily<bool>) -> Option<Census> {
        items::census(families, NETLINK_TIMEOUT)
    }

    fn connections(&mut self, server: &VirtualKey) -> Result<Vec<(RealKey, Connections)>, KernelError> {
        items::connections(server, NETLINK_TIMEOUT)
    }

    fn flows(&mut self, query: &FlowQuery) -> Result<Vec<Flow>, KernelError> {
        conntrack::flows(query, NETLINK_TIMEOUT)
    }

    fn addresses(&mut self, family: IpFamily) -> Result<Vec<IpAddr>, KernelError> {
        address::addresses(family, NETLINK_TIMEOUT)
    }

    fn fingerprint(&mut self) -> Option<Fingerprint> {
        fingerprint::fingerprint(self.tools.variant(), self.families, NETLINK_TIMEOUT)
    }

    fn apply(&mut self, transaction: &[Op]) -> Vec<Result<(), KernelError>> {
        if std::mem::take(&mut self.leftovers) {
            items::remove_leftovers(NETLINK_TIMEOUT);
        }
        apply::apply(&self.tools, transaction, NETLINK_TIMEOUT)
    }
}

/// IPv6 is compiled in, loaded and not switched off.
fn ipv6_enabled() -> Result<(), KernelError> {
    let disabled = |why: &str| Err(KernelError::new(ErrorKind::Unsupported, format!("IPv6 is not available: {why}")));
    if !std::path::Path::new("/proc/thread-self/net/if_inet6").exists() {
        return disabled("the kernel has no /proc/net/if_inet6");
    }
    match sysctl::read_number("net/ipv6/conf/all/disable_ipv6") {
        Ok(1) => disabled("net.ipv6.conf.all.disable_ipv6 is 1"),
        _ => Ok(()),
    }
}
