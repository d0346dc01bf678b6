//! Deleting stale UDP flows, after the rules are in place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::compile::NodePortAddresses;
use crate::kernel::{ErrorKind, Kernel, KernelError, Op};
use crate::net::{IpFamily, PerFamily};
use crate::sync::FlowCleanup;
use crate::sync::clock::Clock;
use crate::sync::engine::Engine;
use crate::sync::flows::{UdpFrontend, queries, stale};

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// Looks at the flows to addresses whose endpoints changed, and deletes the stale ones. What fails stays pending.
    pub(super) fn clean_flows(&mut self) -> PerFamily<Option<FlowCleanup>> {
        self.flow_retry = None;
        if !self.flows.is_pending() {
            return PerFamily::default();
        }
        PerFamily::from_fn(|family| {
            let frontends = self.flows.ready(&self.owners, family);
            (!frontends.is_empty()).then(|| self.clean_family(family, &frontends))
        })
    }

    fn clean_family(&mut self, family: IpFamily, frontends: &[UdpFrontend]) -> FlowCleanup {
        let start = self.clock.now();
        let (deleted, error) = match self.delete_stale(family, frontends) {
            Ok(deleted) => (deleted, None),
            Err((deleted, error)) => (deleted, Some(error)),
        };
        let now = self.clock.now();
        match &error {
            None if !self.flows.looked(frontends, deleted == 0) => {}
            None | Some(_) => self.flow_retry = Some(now + self.options.first_retry * 5),
        }
        FlowCleanup { duration: now.saturating_duration_since(start), deleted, error }
    }

    fn delete_stale(&mut self, family: IpFamily, frontends: &[UdpFrontend]) -> Result<u64, (u64, KernelError)> {
        let allowed: BTreeMap<UdpFrontend, _> =
            frontends.iter().map(|frontend| (*frontend, self.flows.allowed(&self.owners, frontend))).collect();
        let has_node_port = frontends.iter().any(|frontend| frontend.address.is_none());
        let node_addresses = if has_node_port { self.node_port_addresses(family)? } else { Vec::new() };
        let mut found = BTreeSet::new();
        for query in queries(family, frontends) {
            let flows = self.kernel.flows(&query).map_err(|error| (0, error))?;
            found.extend(stale(flows, &allowed, &node_addresses));
        }
        let ops: Vec<Op> = found.into_iter().map(|flow| Op::DeleteFlow(Box::new(flow))).collect();
        if ops.is_empty() {
            return Ok(0);
        }
        let results = self.kernel.apply(&ops);
        // A flow that is not there any more is what was wanted.
        let failed = |result: &Result<(), KernelError>| {
            result.as_ref().err().filter(|error| error.kind != ErrorKind::NotFound).cloned()
        };
        let deleted = results.iter().filter(|result| result.is_ok()).count() as u64;
        match results.iter().find_map(failed) {
            None => Ok(deleted),
            Some(error) => Err((deleted, error)),
        }
    }

    /// The addresses on which node ports are served.
    fn node_port_addresses(&mut self, family: IpFamily) -> Result<Vec<IpAddr>, (u64, KernelError)> {
        match &self.context.node_port_addresses[family] {
            NodePortAddresses::Only(addresses) => Ok(addresses.clone()),
            NodePortAddresses::All => self.kernel.addresses(family).map_err(|error| (0, error)),
        }
    }
}
