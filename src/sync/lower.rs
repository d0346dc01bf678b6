//! From Services to what the ledger wants: the pure part of a sync.

use std::collections::BTreeSet;

use crate::backend::{Fragment, RuleComments};
use crate::compile::{ServicePortPlan, compile_service};
use crate::kernel::Kernel;
use crate::model::ServiceName;
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::Clock;
use crate::sync::engine::{Engine, Run};
use crate::sync::figures::{endpoint_counts, no_local};
use crate::sync::flows::udp_frontends;
use crate::sync::owner::OwnerId;
use crate::sync::program::{Plans, plan_owner};

/// When the ledger was told what an owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// In this sync, by [`Engine::want`]; something may have changed since.
    Before,
    /// It is told now.
    Now,
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// Compiles one Service and lowers it. `None`: there is no such Service and it owns nothing.
    pub(super) fn compile(&mut self, name: &ServiceName) -> Option<(OwnerId, Fragment)> {
        let plans = self.plans(name);
        if plans.is_empty() && self.owners.find(name).is_none() {
            self.triggers.remove(name);
            return None;
        }
        let id = self.owners.intern(name);
        let mut fragment = self.lower(&plans);
        self.settle_disputes(name, id, &mut fragment);
        let udp = udp_frontends(&plans);
        if let Some(owner) = self.owners.get_mut(id) {
            let old = std::mem::replace(&mut owner.udp, udp);
            self.flows.update(id, old.as_deref(), owner.udp.as_deref());
            let mut figures = owner.figures;
            for family in IpFamily::ALL {
                (figures[family].no_local_internal, figures[family].no_local_external) = no_local(&plans, family);
            }
            self.owners.set_figures(id, figures);
        }
        Some((id, fragment))
    }

    pub(super) fn plans(&self, name: &ServiceName) -> Vec<ServicePortPlan> {
        self.cluster.entry(name).map(|entry| compile_service(name, entry, &self.context)).unwrap_or_default()
    }

    pub(super) fn lower(&self, plans: &[ServicePortPlan]) -> Fragment {
        let mut fragment = Fragment::default();
        for plan in plans {
            let comments = RuleComments::for_endpoints(self.owners.sums[plan.family].endpoints as usize);
            self.backend.lower(plan, &self.context, comments, &mut fragment);
        }
        fragment
    }

    /// Makes it what a Service wants, and forgets the content of its chains.
    pub(super) fn want(&mut self, name: &ServiceName) {
        if let Some((id, fragment)) = self.compile(name) {
            self.ledger.set_wanted(&mut self.owners, id, fragment);
        }
    }

    /// Makes a fragment what the owner wants, and plans what that takes in chains and rules. Items are planned when everybody
    /// has said what he wants: one may leave what another one takes.
    pub(super) fn plan(&mut self, id: OwnerId, fragment: Fragment, said: Said, plans: &mut Plans, run: &mut Run) {
        let bodies = match said {
            Said::Before if self.ledger.is_wanted_like(&self.owners, id, &fragment) => self.ledger.unwritten(fragment),
            Said::Before | Said::Now => self.ledger.set_wanted(&mut self.owners, id, fragment),
        };
        self.reopen_disputes();
        run.touched.insert(id);
        if let Some(owner) = self.owners.get(id) {
            plan_owner(plans, &self.ledger, id, owner, bodies);
        }
    }

    /// Counts endpoints before anything is lowered, so that whether comments are written does not depend on the order.
    pub(super) fn count_endpoints(&mut self, names: &BTreeSet<ServiceName>) {
        for name in names {
            let counts = self.cluster.entry(name).map(endpoint_counts).unwrap_or_default();
            let id = match self.owners.find(name) {
                Some(id) => id,
                None if counts == PerFamily::default() => continue,
                None => self.owners.intern(name),
            };
            let mut figures = self.owners.get(id).map(|owner| owner.figures).unwrap_or_default();
            for family in IpFamily::ALL {
                figures[family].endpoints = counts[family];
            }
            self.owners.set_figures(id, figures);
        }
    }

    /// In an audit: what was computed step by step has to equal what is computed from scratch.
    pub(super) fn check_consistency(&self, dirty: &BTreeSet<ServiceName>, run: &mut Run) {
        let stale = |name: &&ServiceName| dirty.contains(*name) || self.work.base || self.work.all_services;
        for name in self.owners.names().filter(|name| !stale(name)) {
            let Some(id) = self.owners.find(name) else { continue };
            let fragment = self.settled_fragment(name, id, self.lower(&self.plans(name)));
            if !self.ledger.is_wanted_like(&self.owners, id, &fragment) {
                tracing::error!(service = %name, "incremental state differs from the one computed from scratch");
                run.inconsistent += 1;
            }
        }
    }
}
