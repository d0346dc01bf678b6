//! Real servers on their way out: weight 0, so that they get no new connections, until those that they have are over.
//!
//! An endpoint that is still listed in an EndpointSlice (not ready, or terminating) is waited for without a limit: its pod
//! lives, and Kubernetes bounds how long it takes to end. When it is listed no more, its pod is gone or about to go, and
//! [`crate::sync::Options::drain_timeout`] begins. After a restart the kernel tells which real servers were being drained, since
//! nobody wants them; their time begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::kernel::{ItemKey, ItemState, Kernel, RealKey, VirtualKey};
use crate::sync::clock::Clock;
use crate::sync::engine::{Engine, Run};
use crate::sync::owner::OwnerId;

/// How long to wait before looking at connections for the first time. The wait doubles from then on.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// The longest wait between two looks.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// All real servers on their way out, by virtual server.
#[derive(Debug, Default)]
pub(crate) struct Drains {
    servers: BTreeMap<VirtualKey, Draining>,
    /// When there is something to do about each.
    queue: BTreeSet<(Instant, VirtualKey)>,
    /// Real servers of all of them.
    count: usize,
    /// Some began or ended since this was last asked.
    changed: bool,
}

#[derive(Debug)]
struct Draining {
    /// With the moment at which each goes in any case; `None` as long as the endpoint is listed.
    reals: BTreeMap<RealKey, Option<Instant>>,
    /// When to look at the connections.
    look: Instant,
    /// How long that was waited for.
    wait: Duration,
}

impl Draining {
    /// When there is something to do: a look, or a deadline.
    fn next(&self) -> Instant {
        self.reals.values().flatten().copied().fold(self.look, Instant::min)
    }
}

impl Drains {
    /// Real servers on their way out.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// When there is something to do.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    fn begin(&mut self, real: RealKey, deadline: Option<Instant>, now: Instant) {
        let look = now + FIRST_LOOK;
        let new = || Draining { reals: BTreeMap::new(), look, wait: FIRST_LOOK };
        self.servers.entry(real.server).or_insert_with(new);
        self.changed = true;
        self.change(&real.server, |draining| {
            (draining.look, draining.wait) = (draining.look.min(look), FIRST_LOOK);
            draining.reals.insert(real, deadline);
        });
    }

    fn end(&mut self, real: &RealKey) {
        self.changed = true;
        self.change(&real.server, |draining| {
            draining.reals.remove(real);
        });
    }

    /// Virtual servers to look at now.
    fn due(&self, now: Instant) -> Vec<VirtualKey> {
        self.queue.iter().take_while(|(at, _)| *at <= now).map(|(_, server)| *server).collect()
    }

    fn looked(&mut self, server: &VirtualKey, now: Instant) {
        self.change(server, |draining| {
            draining.wait = (draining.wait * 2).min(LONGEST_WAIT);
            draining.look = now + draining.wait;
        });
    }

    /// Whether some began or ended since this was last asked. If not, there is nothing to do for them.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Changes the entry of a virtual server and keeps queue and count right; one without real servers goes.
    fn change(&mut self, server: &VirtualKey, change: impl FnOnce(&mut Draining)) {
        let Some(draining) = self.servers.get_mut(server) else { return };
        self.queue.remove(&(draining.next(), *server));
        self.count -= draining.reals.len();
        change(draining);
        if draining.reals.is_empty() {
            self.servers.remove(server);
        } else {
            self.count += draining.reals.len();
            self.queue.insert((draining.next(), *server));
        }
    }
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// What an owner wants, or what was found to be nobody's, has changed: real servers that are wanted no longer begin to drain,
    /// unless their virtual server goes as well; draining ones are in service again, or listed no more, or go together with
    /// their virtual server. To be called when everybody has said what he wants.
    pub(super) fn update_drains(&mut self, id: OwnerId) {
        if id == OwnerId::DRAINS {
            return;
        }
        self.begin_drains(id);
        if self.drains.servers.is_empty() {
            return;
        }
        let Some(owner) = self.owners.get(id) else { return };
        let servers: Vec<VirtualKey> = owner
            .items
            .iter()
            .filter_map(|key| if let ItemKey::VirtualServer(server) = key { Some(server) } else { None })
            .filter(|server| self.drains.servers.contains_key(server))
            .collect();
        let now = self.clock.now();
        for server in servers {
            let goes = self.ledger.items.wanted(&ItemKey::VirtualServer(server)).is_none();
            let Some(draining) = self.drains.servers.get(&server) else { continue };
            for (real, deadline) in draining.reals.clone() {
                let listed = self.is_listed(&real);
                if goes || self.ledger.items.in_service(&ItemKey::RealServer(real)) {
                    self.end_drain(&real);
                } else if listed && deadline.is_some() {
                    self.drains.begin(real, None, now);
                } else if !listed && deadline.is_none() {
                    self.drains.begin(real, Some(now + self.options.drain_timeout), now);
                }
            }
        }
    }

    /// Real servers in an owner's list that nobody wants, and whose virtual server somebody wants, get no new connections from now
    /// on. Those of [`OwnerId::STRAYS`] were on their way out when the process ended before, or lost their endpoint while there
    /// was none.
    fn begin_drains(&mut self, id: OwnerId) {
        let items = &self.ledger.items;
        let Some(owner) = self.owners.get_mut(id) else { return };
        if !owner.items.iter().any(|key| items.drains(&key)) {
            return;
        }
        let leaving: Vec<ItemKey> = owner.items.iter().filter(|key| items.drains(key)).collect();
        owner.items.retain(|key| !items.drains(key));
        let now = self.clock.now();
        for key in leaving {
            let ItemKey::RealServer(real) = key else { continue };
            let deadline = (!self.is_listed(&real)).then(|| now + self.options.drain_timeout);
            self.ledger.items.want(&key, OwnerId::DRAINS, ItemState::Weight(0));
            self.drains.begin(real, deadline, now);
            if let Some(owner) = self.owners.get_mut(OwnerId::DRAINS) {
                owner.items.push(&key);
            }
        }
    }

    /// Looks at the connections of real servers on their way out, with one dump for each virtual server. Those without any, and
    /// those whose time is over, are wanted by nobody from now on.
    pub(super) fn look_at_drains(&mut self, run: &mut Run) {
        for server in self.drains.due(run.start) {
            match self.kernel.connections(&server) {
                Ok(found) => {
                    let found: BTreeMap<_, _> = found.into_iter().collect();
                    let Some(draining) = self.drains.servers.get(&server) else { continue };
                    for (real, deadline) in draining.reals.clone() {
                        let idle = found.get(&real).is_none_or(|it| it.active == 0 && it.inactive == 0);
                        if !found.contains_key(&real) {
                            self.ledger.items.learn(&ItemKey::RealServer(real), None);
                        }
                        if idle || deadline.is_some_and(|deadline| deadline <= run.start) {
                            self.end_drain(&real);
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%server, %error, "cannot look at the connections of leaving endpoints");
                    let Some(draining) = self.drains.servers.get(&server) else { continue };
                    for (real, deadline) in draining.reals.clone() {
                        if deadline.is_some_and(|deadline| deadline <= run.start) {
                            self.end_drain(&real);
                        }
                    }
                }
            }
            self.drains.looked(&server, run.start);
        }
    }

    fn end_drain(&mut self, real: &RealKey) {
        self.drains.end(real);
        self.ledger.items.unwant(&ItemKey::RealServer(*real), OwnerId::DRAINS);
    }

    /// Whether the endpoint of a real server still stands in an EndpointSlice of a Service that wants its virtual server.
    fn is_listed(&self, real: &RealKey) -> bool {
        let server = ItemKey::VirtualServer(real.server);
        let mut entries = self
            .ledger
            .items
            .owners(&server)
            .filter_map(|id| self.owners.get(id)?.name.as_ref())
            .filter_map(|name| self.cluster.entry(name));
        entries.any(|entry| {
            entry.slices.iter().any(|slice| {
                slice.ports.iter().any(|port| port.port.get() == real.port)
                    && slice.endpoints().any(|endpoint| endpoint.address == real.address)
            })
        })
    }
}
