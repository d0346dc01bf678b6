//! Another configuration while the engine runs.
//!
//! With another backend the engine forgets what it knows of the kernel and reads everything anew, so that a switch of the mode is
//! the same as a restart in the other mode, only that the cluster is known already. With the same backend nothing is forgotten:
//! another context makes the engine compile every Service and write what is different.

use std::fmt;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::kernel::Kernel;
use crate::sync::clock::Clock;
use crate::sync::dispute::Disputes;
use crate::sync::drain::Drains;
use crate::sync::engine::{ContextOf, Engine, Options};
use crate::sync::items::Items;
use crate::sync::ledger::Ledger;
use crate::sync::linger::Lingering;
use crate::sync::owner::Owners;
use crate::sync::program::Suspicion;
use crate::sync::watch::Watch;

/// What is other than before.
pub struct Reconfiguration {
    /// Another mode, or the same one with other settings of its own; `None`: the backend stays.
    pub backend: Option<Box<dyn Backend>>,
    /// Makes contexts from the settings that hold now.
    pub context_of: ContextOf,
    /// How the engine behaves from now on. What is being drained keeps its deadline.
    pub options: Options,
    /// The distance between two syncs from now on (`minSyncPeriod`).
    pub min_sync_period: Duration,
}

impl fmt::Debug for Reconfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconfiguration")
            .field("another_backend", &self.backend.is_some())
            .field("options", &self.options)
            .field("min_sync_period", &self.min_sync_period)
            .finish_non_exhaustive()
    }
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// From now on this holds. The kernel agrees after the next sync. `min_sync_period` is the schedule's and has no meaning here.
    pub fn reconfigure(&mut self, new: Reconfiguration) {
        self.options = new.options;
        self.context_of = new.context_of;
        self.bring_timers_forward();
        if let Some(backend) = new.backend {
            self.serve_with(backend);
        }
        self.refresh_context();
    }

    /// What is due later than the intervals now say is due then.
    fn bring_timers_forward(&mut self) {
        let now = self.clock.now();
        let bring =
            |due: &mut Option<Instant>, interval: Duration| *due = due.map(|at: Instant| at.min(now + interval));
        bring(&mut self.work.full_due, self.options.full_interval);
        bring(&mut self.work.items_due, self.options.check_interval);
        bring(&mut self.watch.next, self.options.check_interval);
    }

    fn serve_with(&mut self, backend: Box<dyn Backend>) {
        let claims = backend.claims();
        let item_claims = claims.items.clone().unwrap_or_default();
        if self.serves_items && !item_claims.serving {
            self.work.items_left = self.areas(Suspicion { tables: false, items: true });
        }
        self.claimed_tables = claims.tables();
        self.serves_items = item_claims.serving;
        self.backend = backend;
        // Nothing of this would be true under other claims. What the kernel holds of the old mode is found as nobody's.
        self.ledger = Ledger::new(Items::new(item_claims));
        self.owners = Owners::default();
        self.drains = Drains::default();
        self.lingering = Lingering::default();
        self.disputes = Disputes::default();
        self.observed.clear();
        self.watch = Watch::default();
        self.flows.forget_owners();
        // Nobody stands for a Service that is gone, and so nobody would clear these.
        let cluster = &self.cluster;
        self.triggers.retain(|name, _| cluster.entry(name).is_some());
        self.health_checks.retain(|name, _| {
            let service = cluster.entry(name).and_then(|entry| entry.service.as_ref());
            service.is_some_and(|service| service.health_check_node_port.is_some())
        });
        self.work.base = true;
        self.work.all_services = true;
        self.work.full_due = None;
        self.work.items_due = None;
        self.mark_due();
    }
}
