//! Counters that somebody else counts and that are read when a scrape asks.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Opts};

use super::float;

/// Packets counted by the kernel's nfacct objects. `None`: the object could not be read, and no sample is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounts {
    /// Dropped for their connection tracking state INVALID.
    pub invalid_dropped: Option<u64>,
    /// Accepted on a node port of a loopback address.
    pub localhost_node_ports_accepted: Option<u64>,
}

/// One counter with its description.
struct External {
    opts: Opts,
    desc: Desc,
}

impl External {
    fn new(name: &str, help: &str) -> Result<External, prometheus::Error> {
        let desc = Desc::new(name.to_owned(), help.to_owned(), Vec::new(), Default::default())?;
        Ok(External { opts: Opts::new(name, help), desc })
    }

    /// The family with one sample; nothing if there is no value.
    fn family(&self, value: Option<u64>) -> Vec<MetricFamily> {
        let counter = value.and_then(|value| {
            let counter = Counter::with_opts(self.opts.clone()).ok()?;
            counter.inc_by(float(value));
            Some(counter)
        });
        counter.map(|counter| counter.collect()).unwrap_or_default()
    }
}

/// The two nfacct counters.
pub(super) struct PacketCollector<F> {
    invalid_dropped: External,
    localhost_accepted: External,
    read: F,
}

impl<F> PacketCollector<F> {
    pub(super) fn new(read: F) -> Result<PacketCollector<F>, prometheus::Error> {
        Ok(PacketCollector {
            invalid_dropped: External::new(
                "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
                "[ALPHA] Packets dropped since connection tracking called them INVALID.",
            )?,
            localhost_accepted: External::new(
                "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
                "[ALPHA] Packets accepted on a node port of a loopback address.",
            )?,
            read,
        })
    }
}

impl<F: Fn() -> PacketCounts + Send + Sync> Collector for PacketCollector<F> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.invalid_dropped.desc, &self.localhost_accepted.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counts = (self.read)();
        let mut families = self.invalid_dropped.family(counts.invalid_dropped);
        families.extend(self.localhost_accepted.family(counts.localhost_node_ports_accepted));
        families
    }
}

/// One counter behind a function.
pub(super) struct CallbackCounter<F> {
    counter: External,
    read: F,
}

impl<F> CallbackCounter<F> {
    pub(super) fn new(name: &str, help: &str, read: F) -> Result<CallbackCounter<F>, prometheus::Error> {
        Ok(CallbackCounter { counter: External::new(name, help)?, read })
    }
}

impl<F: Fn() -> u64 + Send + Sync> Collector for CallbackCounter<F> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.counter.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.counter.family(Some((self.read)()))
    }
}
