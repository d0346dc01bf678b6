//! The part of the ledger that holds items.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::kernel::census::Census;
use crate::kernel::{ItemClaims, ItemDump, ItemKey, ItemKind, ItemState, Op, RealKey, SetKey, VirtualKey};
use crate::net::{IpFamily, Protocol};
use crate::sync::item_table::{ItemTable, same};
use crate::sync::owner::{Owner, OwnerId, Owners};
use crate::sync::tracked::Pending;

/// Items, wanted and known.
#[derive(Debug, Default)]
pub(crate) struct Items {
    tracked: ItemTable,
    claims: ItemClaims,
    /// The picture of what is known to exist.
    census: Census,
    /// Items known to exist, by family (IPv4 for the link) and kind.
    counts: BTreeMap<(IpFamily, ItemKind), u64>,
    /// Real servers of virtual servers that are none of our business. They become somebody's as soon as he wants the virtual
    /// server.
    unclaimed: HashMap<VirtualKey, BTreeSet<RealKey>>,
    /// Virtual servers that nobody wants any more, for those who were turned away there.
    vacated: Vec<VirtualKey>,
}

impl Items {
    /// No items; `claims` tell what of those that will be found is ours.
    pub(crate) fn new(claims: ItemClaims) -> Items {
        Items { claims, ..Items::default() }
    }

    /// Makes these everything that the owner wants.
    pub(crate) fn set_wanted(&mut self, id: OwnerId, owner: &mut Owner, items: Vec<(ItemKey, ItemState)>) {
        let old = std::mem::take(&mut owner.items);
        for (key, state) in items {
            self.tracked.want(&key, id, state);
            owner.items.push(&key);
        }
        if !self.unclaimed.is_empty() {
            self.claim(owner);
        }
        if old.is_empty() {
            owner.items.shrink_to_fit();
            return;
        }
        let kept: HashSet<ItemKey> = owner.items.iter().collect();
        let left: Vec<ItemKey> = old.iter().filter(|key| !kept.contains(key)).collect();
        for key in left {
            self.tracked.unwant(&key, id);
            if let ItemKey::VirtualServer(server) = key
                && self.tracked.wanted(&key).is_none()
            {
                self.vacated.push(server);
            }
            if !self.leave_excluded(&key) && self.tracked.contains(&key) {
                owner.items.push(&key);
            }
        }
        owner.items.shrink_to_fit();
    }

    /// Whether an item is a real server that nobody wants and whose connections have to end before it can go. Datagrams have
    /// nothing to wait for: the next one goes to another real server.
    pub(crate) fn drains(&self, key: &ItemKey) -> bool {
        match key {
            ItemKey::RealServer(real) => {
                real.server.protocol == Protocol::Tcp
                    && self.tracked.pending(key) == Some(Pending::Remove)
                    && self.tracked.wanted(&ItemKey::VirtualServer(real.server)).is_some()
            }
            _ => false,
        }
    }

    /// The virtual servers that nobody wants any more since this was last asked.
    pub(crate) fn take_vacated(&mut self) -> Vec<VirtualKey> {
        std::mem::take(&mut self.vacated)
    }

    /// What was found in virtual servers that an owner wants and that were nobody's is his to remove.
    fn claim(&mut self, owner: &mut Owner) {
        let mut claimed = Vec::new();
        for key in owner.items.iter() {
            if let ItemKey::VirtualServer(server) = key
                && let Some(reals) = self.unclaimed.remove(&server)
            {
                let reals = reals.into_iter().map(ItemKey::RealServer);
                claimed.extend(reals.filter(|real| self.tracked.pending(real) == Some(Pending::Remove)));
            }
        }
        claimed.iter().for_each(|key| owner.items.push(key));
    }

    /// An excluded virtual server that nobody wants any more stays as it is.
    fn leave_excluded(&mut self, key: &ItemKey) -> bool {
        let server = match key {
            ItemKey::VirtualServer(server) => server,
            ItemKey::RealServer(real) => &real.server,
            _ => return false,
        };
        let unwanted = self.tracked.wanted(&ItemKey::VirtualServer(*server)).is_none();
        let leave = unwanted && self.tracked.wanted(key).is_none() && self.claims.excludes(server.address);
        if leave && let ItemKey::RealServer(real) = key {
            self.unclaimed.entry(real.server).or_default().insert(*real);
        }
        leave
    }

    /// The owner wants this item, besides what he wants already.
    pub(crate) fn want(&mut self, key: &ItemKey, id: OwnerId, state: ItemState) {
        self.tracked.want(key, id, state);
    }

    /// The owner does not want the item any more.
    pub(crate) fn unwant(&mut self, key: &ItemKey, id: OwnerId) {
        self.tracked.unwant(key, id);
    }

    /// How an item is wanted.
    pub(crate) fn wanted(&self, key: &ItemKey) -> Option<ItemState> {
        self.tracked.wanted(key)
    }

    /// What is to be done about an item.
    pub(crate) fn pending(&self, key: &ItemKey) -> Option<Pending<ItemState>> {
        self.tracked.pending(key)
    }

    /// What the kernel is known to hold.
    pub(crate) fn known(&self, key: &ItemKey) -> Option<ItemState> {
        self.tracked.known(key)
    }

    /// Elements of a set that are known to exist.
    pub(crate) fn elements(&self, set: &SetKey) -> u32 {
        self.census.elements(set)
    }

    /// The owners of an item.
    pub(crate) fn owners(&self, key: &ItemKey) -> impl Iterator<Item = OwnerId> {
        self.tracked.owners(key)
    }

    /// Whether somebody else than those who wait for its connections wants a real server.
    pub(crate) fn in_service(&self, key: &ItemKey) -> bool {
        self.tracked.owners(key).any(|owner| owner != OwnerId::DRAINS)
    }

    /// Whether this owner still has to do with the item: he wants it, or it is not as it should be.
    pub(crate) fn concerns(&self, key: &ItemKey, id: OwnerId) -> bool {
        self.tracked.wants(key, id) || !self.settled(key)
    }

    /// Whether the kernel holds the item as it is wanted.
    pub(crate) fn settled(&self, key: &ItemKey) -> bool {
        self.tracked.pending(key).is_none()
    }

    /// Whether the owner wants exactly these.
    pub(crate) fn is_wanted_like(&self, id: OwnerId, owner: &Owner, items: &[(ItemKey, ItemState)]) -> bool {
        let wants = |key: &ItemKey| self.tracked.wants(key, id);
        owner.items.iter().filter(wants).count() == items.len()
            && items.iter().all(|(key, state)| self.tracked.is_wanted_like(key, id, state))
    }

    /// Owners of items that are wanted and not as they should be. A pass over everything.
    pub(crate) fn unsettled_owners(&self) -> impl Iterator<Item = OwnerId> {
        self.tracked.unsettled_owners()
    }

    /// Whether a picture of the kernel shows what is known.
    pub(crate) fn agrees(&self, census: &Census) -> bool {
        self.census == *census
    }

    /// Items known to exist, by family and kind.
    pub(crate) fn counts(&self) -> &BTreeMap<(IpFamily, ItemKind), u64> {
        &self.counts
    }

    /// An operation took effect.
    pub(crate) fn record(&mut self, op: &Op) {
        match op {
            Op::AddItem(key, state) | Op::ChangeItem(key, state) => self.learn(key, Some(*state)),
            Op::DeleteItem(key) => {
                self.learn(key, None);
                if matches!(key, ItemKey::Set(_) | ItemKey::Link) {
                    let inside: Vec<ItemKey> = self.tracked.keys().filter(|it| parent(it) == Some(*key)).collect();
                    inside.iter().for_each(|item| self.learn(item, None));
                }
            }
            _ => {}
        }
    }

    /// The kernel is now known to hold this.
    pub(crate) fn learn(&mut self, key: &ItemKey, known: Option<ItemState>) {
        let before = self.tracked.learn(key, known);
        let count = self.counts.entry((key.family().unwrap_or(IpFamily::V4), key.kind())).or_default();
        *count = (*count + u64::from(known.is_some())).saturating_sub(u64::from(before.is_some()));
        if let Some(state) = before {
            self.census.remove(key, &state);
        }
        if let Some(state) = known {
            self.census.add(key, &state);
        }
    }

    /// A real server that was found and that nobody wants is left alone, unless somebody wants its virtual server.
    fn leave_unclaimed(&mut self, owners: &mut Owners, key: ItemKey) {
        let ItemKey::RealServer(real) = key else { return };
        if self.tracked.wanted(&ItemKey::VirtualServer(real.server)).is_none() {
            self.unclaimed.entry(real.server).or_default().insert(real);
        } else if let Some(strays) = owners.get_mut(OwnerId::STRAYS) {
            strays.items.push(&key);
        }
    }

    /// Takes a dump for the truth about the items of a family. Returns how many were other than known, and gives what is ours
    /// and wanted by nobody to [`OwnerId::STRAYS`].
    pub(crate) fn observe(&mut self, owners: &mut Owners, family: IpFamily, dump: ItemDump) -> u64 {
        let mut ours: HashMap<ItemKey, ItemState> = dump.ours.into_iter().collect();
        let mut foreign: HashMap<ItemKey, ItemState> = dump.foreign.into_iter().collect();
        let known: Vec<ItemKey> =
            self.tracked.keys().filter(|key| key.family().is_none_or(|of| of == family)).collect();
        let mut drift = 0;
        for key in known {
            let found = ours.remove(&key).or_else(|| foreign.remove(&key));
            let same = match (self.tracked.known(&key), found) {
                (Some(known), Some(found)) => same(&known, &found),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            // What nobody wants may come and go as others like.
            drift += u64::from(!same && self.tracked.wanted(&key).is_some());
            self.learn(&key, found);
        }
        // Virtual servers of others are known, so that a Service that wants the same address and port finds them.
        for (key, state) in foreign {
            self.learn(&key, Some(state));
            self.leave_unclaimed(owners, key);
        }
        for (key, state) in ours {
            let server = match key {
                ItemKey::VirtualServer(server) => Some(server),
                ItemKey::RealServer(real) => Some(real.server),
                _ => None,
            };
            drift += 1;
            self.learn(&key, Some(state));
            if server.is_some_and(|server| self.claims.excludes(server.address)) {
                self.leave_unclaimed(owners, key);
            } else if let Some(strays) = owners.get_mut(OwnerId::STRAYS) {
                strays.items.push(&key);
            }
        }
        let tracked = &self.tracked;
        self.unclaimed.retain(|_, reals| {
            reals.retain(|real| tracked.known(&ItemKey::RealServer(*real)).is_some());
            !reals.is_empty()
        });
        drift
    }
}

/// What takes an item with it when it goes.
pub(crate) fn parent(key: &ItemKey) -> Option<ItemKey> {
    match key {
        ItemKey::Element(set, _) => Some(ItemKey::Set(*set)),
        ItemKey::Address(_) => Some(ItemKey::Link),
        ItemKey::Set(_) | ItemKey::VirtualServer(_) | ItemKey::RealServer(_) | ItemKey::Route(_) | ItemKey::Link => {
            None
        }
    }
}
