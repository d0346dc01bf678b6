//! Who hears about syncs: the log, metrics and health.

use std::sync::Arc;

use crate::compile::{NodeContext, NodePortAddresses};
use crate::health::{HealthState, ListenAddresses, ServiceHealth};
use crate::linux::{memory, nftables};
use crate::metrics::Metrics;
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::{Clock, SystemClock};
use crate::sync::{
    ADDRESSES_WITHIN, HealthChecks, NodeWait, Observer, POD_CIDRS_WITHIN, Pending, SyncKind, SyncReport,
};

/// When the whole node is in trouble, as while the lock is held, thousands of Services fail for one reason.
const LOGGED_FAILURES: usize = 10;

/// What kube-proxy's nftables mode may have left on this node.
#[derive(Debug)]
pub(super) struct NftablesLeft(PerFamily<bool>);

impl NftablesLeft {
    /// Nobody has looked.
    pub(super) fn perhaps() -> NftablesLeft {
        NftablesLeft(PerFamily { v4: true, v6: true })
    }

    /// Deletes it, in both families, as kube-proxy's other modes do. What fails is tried again by the next call.
    /// Whether nothing is left.
    pub(super) fn remove(&mut self) -> bool {
        for family in IpFamily::ALL {
            if !self.0[family] {
                continue;
            }
            match nftables::delete_kube_proxy_table(family) {
                Ok(found) => {
                    self.0[family] = false;
                    if found {
                        tracing::info!(%family, "the table of kube-proxy's nftables mode is deleted");
                    }
                }
                Err(error) => tracing::warn!(%error, "what kube-proxy's nftables mode left stays"),
            }
        }
        self.0 == PerFamily::default()
    }
}

/// Passes what a sync did on to the log, metrics and health.
pub(super) struct Announcer {
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<HealthState>,
    pub(super) service_health: ServiceHealth,
    pub(super) families: PerFamily<bool>,
    /// kube-proxy's nftables tables may be there.
    pub(super) nftables: NftablesLeft,
    /// Ends the daemon: it cannot go on with what is known of the Node.
    pub(super) give_up: Box<dyn Fn() + Send>,
}

impl Observer for Announcer {
    fn awaited(&mut self, wait: NodeWait) {
        match wait {
            NodeWait::Unlisted => {}
            NodeWait::Addresses(_) => {
                tracing::info!(at_most_s = ADDRESSES_WITHIN.as_secs(), "waiting for the addresses of the Node");
            }
            NodeWait::PodCidrs(_) => {
                tracing::info!(at_most_s = POD_CIDRS_WITHIN.as_secs(), "waiting for the pod CIDRs of the Node");
            }
            NodeWait::Known => self.health.go_on(),
            NodeWait::Unaddressed => {
                tracing::error!("there is no such Node, or it has no addresses; going on without, until it has");
                self.health.go_on();
            }
            NodeWait::Failed => (self.give_up)(),
        }
    }

    fn queued(&mut self) {
        self.metrics.sync_queued(SystemClock.wall());
        self.families().for_each(|family| self.health.queued(family));
    }

    fn reconfigured(&mut self) {
        tracing::info!("the next sync goes by the changed configuration");
    }

    fn pending(&mut self, pending: Pending) {
        self.metrics.set_pending(pending);
    }

    fn synced(&mut self, report: &SyncReport, node: &NodeContext, health_checks: &HealthChecks) {
        self.metrics.observe(report, SystemClock.wall());
        if report.healthy() {
            self.families().for_each(|family| self.health.updated(family));
            // Not before the rules stand, so that there is no time without any.
            self.nftables.remove();
        }
        self.service_health.set_addresses(listen_addresses(node));
        self.service_health.sync(health_checks);
        log_report(report);
        match report.kind {
            SyncKind::Full => memory::release_unused(),
            SyncKind::Partial => {}
        }
    }
}

impl Announcer {
    /// The sync thread begins. From now on a change that waits too long counts, also if no sync has ever succeeded.
    pub(super) fn begin(&self) {
        self.metrics.sync_queued(SystemClock.wall());
        self.families().for_each(|family| self.health.updated(family));
        self.health.await_node();
    }

    fn families(&self) -> impl Iterator<Item = IpFamily> {
        IpFamily::ALL.into_iter().filter(|family| self.families[*family])
    }
}

/// Health-check node ports are served where node ports are.
fn listen_addresses(node: &NodeContext) -> PerFamily<ListenAddresses> {
    PerFamily::from_fn(|family| match &node.node_port_addresses[family] {
        _ if !node.families[family] => ListenAddresses::None,
        NodePortAddresses::All => ListenAddresses::All,
        NodePortAddresses::Only(addresses) => ListenAddresses::Only(addresses.clone()),
    })
}

/// Says what a sync did: failures as warnings, drift as a warning, the rest for who wants to know.
pub(super) fn log_report(report: &SyncReport) {
    for (table, error) in &report.failed_dumps {
        tracing::warn!(%table, %error, "cannot read the table");
    }
    for failed in report.failed.iter().take(LOGGED_FAILURES) {
        let retry_in_ms = failed.retry_in.as_millis();
        let (error, attempts) = (&failed.error, failed.attempts);
        match &failed.service {
            Some(service) => tracing::warn!(%service, %error, attempts, retry_in_ms, "Service is not programmed"),
            None if failed.isolated => tracing::warn!(%error, attempts, retry_in_ms, "leftovers cannot be removed"),
            None => {
                tracing::warn!(%error, attempts, retry_in_ms, "rules on which all Services stand are not programmed");
            }
        }
    }
    if let Some(more @ 1..) = report.failed.len().checked_sub(LOGGED_FAILURES) {
        tracing::warn!(more, "others are not programmed either");
    }
    for (table, count) in &report.drift {
        tracing::warn!(%table, count, "objects were not as they had been left; repaired");
    }
    for family in IpFamily::ALL {
        match &report.flow_cleanup[family] {
            Some(cleanup) if cleanup.error.is_some() || cleanup.deleted > 0 => tracing::info!(
                %family,
                deleted = cleanup.deleted,
                error = cleanup.error.as_ref().map(tracing::field::display),
                "stale UDP flows"
            ),
            Some(_) | None => {}
        }
    }
    let operations: u64 = report.operations.values().sum();
    let (services, transactions) = (report.compiled_services, report.transactions);
    let ms = report.duration.as_millis();
    match report.kind {
        SyncKind::Full => tracing::info!(services, operations, transactions, ms, "full sync"),
        SyncKind::Partial => tracing::debug!(services, operations, transactions, ms, "sync"),
    }
}
