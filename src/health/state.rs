//! Whether the proxy keeps up with what it is asked to do.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::timestamp::{NEVER, rfc3339};
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::Clock;

/// What the health endpoints say. A family is healthy if nothing waits to be programmed, or not for longer than twice the
/// sync period; a family that was never programmed does not count. Shared behind an `Arc`.
pub struct HealthState {
    clock: Box<dyn Clock + Sync>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// How long a change may wait.
    timeout: Duration,
    families: PerFamily<Family>,
    node_eligible: bool,
    /// Nothing is programmed yet, since what has to be known of the Node is not.
    node_awaited: bool,
}

#[derive(Clone, Copy, Default)]
struct Family {
    /// When the last successful sync ended; `None`: the family is not programmed.
    last_updated: Option<SystemTime>,
    /// Since when a change waits; `None`: nothing does.
    pending_since: Option<Instant>,
}

/// Which of the two questions is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Should load balancers send traffic to this node? Healthy and the node is eligible.
    Healthz,
    /// Should the proxy be restarted? Healthy, whatever is to become of the node.
    Livez,
}

/// An answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status: 200 or 503.
    pub status: u16,
    /// The JSON body.
    pub body: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Families::is_empty")]
    status: Families,
}

#[derive(Serialize)]
struct Families {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyBody>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyBody>,
}

impl Families {
    fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

impl HealthState {
    /// A state in which nothing was programmed yet and the node is unknown, and so not eligible.
    pub fn new(sync_period: Duration, clock: impl Clock + Sync + 'static) -> HealthState {
        let inner = Inner {
            timeout: sync_period * 2,
            families: PerFamily::default(),
            node_eligible: false,
            node_awaited: false,
        };
        HealthState { clock: Box::new(clock), inner: Mutex::new(inner) }
    }

    /// Another sync period is in force: from now on a change may wait for twice this time, also one that waits already.
    pub fn set_sync_period(&self, sync_period: Duration) {
        self.lock().timeout = sync_period * 2;
    }

    /// A sync of the family succeeded, or its loop has begun: nothing waits any more.
    pub fn updated(&self, family: IpFamily) {
        let now = self.clock.wall();
        self.lock().families[family] = Family { last_updated: Some(now), pending_since: None };
    }

    /// A change waits for the next sync of the family. Only the first one since the last success counts.
    pub fn queued(&self, family: IpFamily) {
        let now = self.clock.now();
        self.lock().families[family].pending_since.get_or_insert(now);
    }

    /// Whether load balancers should send traffic to this node, as far as the Node object says.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.lock().node_eligible = eligible;
    }

    /// The Node is waited for. As long as it is, load balancers are told to stay away, and nobody that the proxy should
    /// be restarted. (kube-proxy does not listen in that time.)
    pub fn await_node(&self) {
        self.lock().node_awaited = true;
    }

    /// The Node is not waited for any more.
    pub fn go_on(&self) {
        self.lock().node_awaited = false;
    }

    /// Whether all families keep up.
    pub fn healthy(&self) -> bool {
        let now = self.clock.now();
        let inner = self.lock();
        IpFamily::ALL.into_iter().all(|family| inner.healthy(family, now))
    }

    /// Answers a probe.
    pub fn reply(&self, probe: Probe) -> Reply {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let inner = self.lock();
        let healthy = IpFamily::ALL.into_iter().all(|family| inner.healthy(family, now));
        let eligible = inner.node_eligible && !inner.node_awaited;
        let good = match probe {
            Probe::Healthz => healthy && eligible,
            Probe::Livez => healthy,
        };
        let family_body = |family: IpFamily| {
            let state = &inner.families[family];
            let last_updated = rfc3339(state.last_updated?);
            Some(FamilyBody { last_updated, healthy: inner.healthy(family, now) })
        };
        let newest = inner.families.v4.last_updated.max(inner.families.v6.last_updated);
        let body = Body {
            // Load balancers of some clouds take an old lastUpdated for a failure, so a good answer is always new.
            last_updated: if good { rfc3339(wall) } else { newest.map_or_else(|| NEVER.to_owned(), rfc3339) },
            current_time: rfc3339(wall),
            node_eligible: (probe == Probe::Healthz).then_some(eligible),
            healthy,
            status: Families { v4: family_body(IpFamily::V4), v6: family_body(IpFamily::V6) },
        };
        let body = serde_json::to_string(&body).unwrap_or_default();
        Reply { status: if good { 200 } else { 503 }, body }
    }

    /// The clock that everything here is told by.
    pub(super) fn clock(&self) -> &(dyn Clock + Sync) {
        self.clock.as_ref()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change of the state is one assignment, so a panic elsewhere cannot leave it half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn healthy(&self, family: IpFamily, now: Instant) -> bool {
        let Family { last_updated, pending_since } = self.families[family];
        match (last_updated, pending_since) {
            (None, _) | (_, None) => true,
            (Some(_), Some(since)) => now.saturating_duration_since(since) < self.timeout,
        }
    }
}
