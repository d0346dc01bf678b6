//! Who hears about syncs: the log, metrics and health.

use std::sync::Arc;

use crate::compile::{NodeContext, NodePortAddresses};
use crate::health::{HealthState, ListenAddresses, ServiceHealth};
use crate::linux::memory;
use crate::metrics::Metrics;
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::{Clock, SystemClock};
use crate::sync::{HealthChecks, Observer, Pending, SyncKind, SyncReport};

/// When the whole node is in trouble, as while the lock is held, thousands of Services fail for one reason.
const LOGGED_FAILURES: usize = 10;

/// Passes what a sync did on to the log, metrics and health.
pub(super) struct Announcer {
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<HealthState>,
    pub(super) service_health: ServiceHealth,
    pub(super) families: PerFamily<bool>,
}

impl Observer for Announcer {
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
