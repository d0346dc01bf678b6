//! The end of a sync: retries, latencies, health checks, and the report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kernel::{Area, ErrorKind, Kernel, KernelError};
use crate::model::ServiceName;
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::Clock;
use crate::sync::engine::{Engine, Run};
use crate::sync::figures::local_ready_endpoints;
use crate::sync::owner::{OwnerId, Retry};
use crate::sync::program::Suspicion;
use crate::sync::schedule::backoff;
use crate::sync::{FailedOwner, FlowCleanup, HealthCheck, SyncKind, SyncReport};

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// Sets and clears retries; returns the latencies of what is in the kernel now.
    pub(super) fn settle(&mut self, run: &mut Run) -> Vec<(ServiceName, IpFamily, Duration)> {
        let now = self.clock.now();
        let mut programmed = Vec::new();
        if !run.failed_dumps.is_empty() || run.tally.suspect.any() {
            self.work.full_due = Some(now + self.options.first_retry * 10);
        } else if run.kind == SyncKind::Full {
            // Here items were read before: it is not that this node has none.
            let left = run.unread_leftovers.iter().any(|(area, _)| self.work.items_left.contains(area));
            let wait = if left { self.options.longest_retry } else { self.options.full_interval };
            self.work.full_due = Some(now + wait);
        }
        for id in std::mem::take(&mut run.touched) {
            let failure = IpFamily::ALL.iter().find_map(|family| run.tally.failures[*family].get(&id).cloned());
            let unsettled = || (KernelError::new(ErrorKind::Aborted, "not carried out"), false);
            let failure = failure.or_else(|| (!self.ledger.settled(&self.owners, id)).then(unsettled));
            if let Some((error, culprit)) = failure {
                self.schedule_retry(id, error, culprit, now);
                if let Some(name) = self.owners.get(id).and_then(|owner| owner.name.clone()) {
                    self.lower_health_check(&name);
                }
                continue;
            }
            self.owners.set_retry(id, None);
            if let Some(name) = self.owners.get(id).and_then(|owner| owner.name.clone()) {
                let wall = self.clock.wall();
                for (family, at) in self.triggers.remove(&name).into_iter().flatten() {
                    programmed.push((name.clone(), family, wall.duration_since(at).unwrap_or_default()));
                }
                self.update_health_check(&name);
            }
            self.ledger.prune(&mut self.owners, id);
        }
        programmed
    }

    fn schedule_retry(&mut self, id: OwnerId, error: KernelError, culprit: bool, now: Instant) {
        let attempts = self.owners.get(id).and_then(|owner| owner.retry.as_ref()).map_or(0, |retry| retry.attempts) + 1;
        let at = now + backoff(self.options.first_retry, self.options.longest_retry, attempts);
        self.owners.set_retry(id, Some(Retry { attempts, at, error, culprit }));
    }

    fn update_health_check(&mut self, name: &ServiceName) {
        let entry = self.cluster.entry(name);
        let port = entry.and_then(|entry| entry.service.as_ref()).and_then(|service| service.health_check_node_port);
        match port {
            Some(port) => {
                let local_endpoints = local_ready_endpoints(&self.plans(name));
                self.health_checks.insert(name.clone(), HealthCheck { port, local_endpoints });
            }
            None => {
                self.health_checks.remove(name);
            }
        }
    }

    /// The Service is not programmed as it should be. What is gone is gone nevertheless, so a count falls at once and rises
    /// only when the kernel agrees: a load balancer must turn away before the last endpoint ends, and not turn to rules that
    /// are not there.
    fn lower_health_check(&mut self, name: &ServiceName) {
        let entry = self.cluster.entry(name);
        let port = entry.and_then(|entry| entry.service.as_ref()).and_then(|service| service.health_check_node_port);
        let Some(port) = port else { return };
        let Some(known) = self.health_checks.get(name).map(|check| check.local_endpoints) else { return };
        let wanted = local_ready_endpoints(&self.plans(name));
        let local_endpoints =
            PerFamily::from_fn(|family| wanted[family].map(|wanted| wanted.min(known[family].unwrap_or_default())));
        self.health_checks.insert(name.clone(), HealthCheck { port, local_endpoints });
    }

    pub(super) fn report(
        &self,
        run: Run,
        programmed: Vec<(ServiceName, IpFamily, Duration)>,
        flow_cleanup: PerFamily<Option<FlowCleanup>>,
    ) -> SyncReport {
        let now = self.clock.now();
        let duration = now.saturating_duration_since(run.start);
        let flows = IpFamily::ALL.iter().filter_map(|family| Some(flow_cleanup[*family].as_ref()?.duration)).sum();
        let mut rules = run.tally.rules;
        for area in self.areas(Suspicion { tables: true, items: false }) {
            let Area::Table(table) = area else { continue };
            rules.entry(table).or_default().total = self.ledger.total(table);
        }
        let failed = self.owners.waiting().map(|(id, owner, retry)| FailedOwner {
            service: owner.name.clone().filter(|_| id != OwnerId::BASE),
            error: retry.error.clone(),
            attempts: retry.attempts,
            retry_in: retry.at.saturating_duration_since(now),
            isolated: retry.culprit && id != OwnerId::BASE,
        });
        SyncReport {
            kind: run.kind,
            duration,
            dump_duration: run.dump_duration,
            compute_duration: duration.saturating_sub(run.dump_duration + run.tally.apply_duration + flows),
            apply_duration: run.tally.apply_duration,
            compiled_services: run.compiled,
            operations: run.tally.operations,
            transactions: run.tally.transactions,
            failed_restores: run.tally.failed_restores,
            drift: run.drift,
            inconsistent_services: run.inconsistent,
            failed_dumps: run.failed_dumps,
            unread_leftovers: run.unread_leftovers,
            failed: failed.collect(),
            programmed,
            rules,
            no_local_endpoints: PerFamily::from_fn(|family| {
                use crate::sync::TrafficPolicyLabel::{External, Internal};
                let sums = self.owners.sums[family];
                BTreeMap::from([
                    (Internal, u64::from(sums.no_local_internal)),
                    (External, u64::from(sums.no_local_external)),
                ])
            }),
            flow_cleanup,
            items: self.ledger.items.counts().clone(),
            draining: self.drains.len() + self.lingering.len(),
        }
    }
}
