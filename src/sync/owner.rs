//! Who wants a kernel object: a Service, the base on which all Services stand, or nobody.

use std::collections::HashMap;
use std::time::Instant;

use foldhash::fast::RandomState;

use crate::kernel::{KernelError, RuleKey};
use crate::model::ServiceName;
use crate::net::PerFamily;
use crate::sync::chains::ChainList;
use crate::sync::flows::UdpFrontends;
use crate::sync::item_table::ItemList;

/// A small number that stands for an owner as long as he owns anything. Of several who want the same object the first decides
/// how it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OwnerId(u32);

impl Ord for OwnerId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Whoever wants a real server wants it more than those who only wait for its connections to end.
        (*self == OwnerId::DRAINS, self.0).cmp(&(*other == OwnerId::DRAINS, other.0))
    }
}

impl PartialOrd for OwnerId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl OwnerId {
    /// The base: fixed chains and jumps.
    pub(crate) const BASE: OwnerId = OwnerId(0);
    /// Nobody: objects that a dump found to be ours and that no one wants.
    pub(crate) const STRAYS: OwnerId = OwnerId(1);
    /// Real servers that get no new connections and wait for the end of those that they have.
    pub(crate) const DRAINS: OwnerId = OwnerId(2);
    const RESERVED: u32 = 3;
}

/// What is kept about one owner.
#[derive(Debug, Default)]
pub(crate) struct Owner {
    /// The Service; `None` for the base and for strays.
    pub(crate) name: Option<ServiceName>,
    /// Chains that he wants, or wanted and that are not yet known to be gone.
    pub(crate) chains: ChainList,
    /// Rules in shared and host chains, likewise.
    pub(crate) rules: Vec<RuleKey>,
    /// Items, likewise.
    pub(crate) items: ItemList,
    /// Set while something of his could not be programmed.
    pub(crate) retry: Option<Box<Retry>>,
    /// The UDP addresses of the Service and who may answer there; `None`: it has none.
    pub(crate) udp: Option<Box<UdpFrontends>>,
    /// Figures that are summed over all Services.
    pub(crate) figures: PerFamily<Figures>,
}

/// What one Service adds to sums over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Endpoints over all its ports, usable or not.
    pub(crate) endpoints: u32,
    /// Ports whose internal policy is Local and that have endpoints, but none here.
    pub(crate) no_local_internal: u32,
    /// The same for the external policy.
    pub(crate) no_local_external: u32,
}

/// A failure that waits to be tried again.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    /// Failures in a row.
    pub(crate) attempts: u32,
    /// When to try again.
    pub(crate) at: Instant,
    /// The last error.
    pub(crate) error: KernelError,
    /// The kernel named an operation of this owner as the one that it does not take: until it succeeds, it gets
    /// transactions of its own, so that it can't spoil those of others.
    pub(crate) culprit: bool,
}

/// All owners.
#[derive(Debug)]
pub(crate) struct Owners {
    ids: HashMap<ServiceName, OwnerId, RandomState>,
    slots: Vec<Owner>,
    free: Vec<OwnerId>,
    /// Owners with a retry.
    waiting: std::collections::BTreeSet<(Instant, OwnerId)>,
    /// Sums over all owners.
    pub(crate) sums: PerFamily<Figures>,
}

impl Default for Owners {
    fn default() -> Owners {
        Owners {
            ids: HashMap::default(),
            slots: (0..OwnerId::RESERVED).map(|_| Owner::default()).collect(),
            free: Vec::new(),
            waiting: Default::default(),
            sums: PerFamily::default(),
        }
    }
}

impl Owners {
    /// The owner of that name, made if there is none.
    pub(crate) fn intern(&mut self, name: &ServiceName) -> OwnerId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Owner::default());
            OwnerId(self.slots.len() as u32 - 1)
        });
        self.ids.insert(name.clone(), id);
        if let Some(owner) = self.get_mut(id) {
            owner.name = Some(name.clone());
        }
        id
    }

    /// The owner of that name, if it owns anything.
    pub(crate) fn find(&self, name: &ServiceName) -> Option<OwnerId> {
        self.ids.get(name).copied()
    }

    /// An owner.
    pub(crate) fn get(&self, id: OwnerId) -> Option<&Owner> {
        self.slots.get(id.0 as usize)
    }

    /// An owner, to change it.
    pub(crate) fn get_mut(&mut self, id: OwnerId) -> Option<&mut Owner> {
        self.slots.get_mut(id.0 as usize)
    }

    /// Names of all Services that own anything.
    pub(crate) fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.ids.keys()
    }

    /// Replaces an owner's figures and keeps the sums right.
    pub(crate) fn set_figures(&mut self, id: OwnerId, new: PerFamily<Figures>) {
        let Some(owner) = self.slots.get_mut(id.0 as usize) else { return };
        let old = std::mem::replace(&mut owner.figures, new);
        for family in crate::net::IpFamily::ALL {
            let sum = &mut self.sums[family];
            sum.endpoints = sum.endpoints - old[family].endpoints + new[family].endpoints;
            sum.no_local_internal =
                sum.no_local_internal - old[family].no_local_internal + new[family].no_local_internal;
            sum.no_local_external =
                sum.no_local_external - old[family].no_local_external + new[family].no_local_external;
        }
    }

    /// Sets or clears an owner's retry.
    pub(crate) fn set_retry(&mut self, id: OwnerId, retry: Option<Retry>) {
        let Some(owner) = self.slots.get_mut(id.0 as usize) else { return };
        if let Some(old) = &owner.retry {
            self.waiting.remove(&(old.at, id));
        }
        if let Some(new) = &retry {
            self.waiting.insert((new.at, id));
        }
        owner.retry = retry.map(Box::new);
    }

    /// When the next retry is due.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// Owners whose retry is due.
    pub(crate) fn due(&self, now: Instant) -> Vec<OwnerId> {
        self.waiting.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }

    /// All owners that wait for a retry.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (OwnerId, &Owner, &Retry)> {
        self.waiting.iter().filter_map(|(_, id)| {
            let owner = self.get(*id)?;
            Some((*id, owner, owner.retry.as_deref()?))
        })
    }

    /// Forgets a Service that owns nothing any more; keeps the base and strays.
    pub(crate) fn release(&mut self, id: OwnerId) {
        let Some(owner) = self.slots.get_mut(id.0 as usize) else { return };
        let owns = !owner.chains.is_empty() || !owner.rules.is_empty() || !owner.items.is_empty();
        let idle = !owns && owner.retry.is_none() && owner.udp.is_none();
        if idle && let Some(name) = owner.name.take() {
            self.ids.remove(&name);
            self.free.push(id);
        }
    }
}
