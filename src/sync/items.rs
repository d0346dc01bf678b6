//! The part of the ledger that holds items, and the order in which what is pending for them is carried out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use crate::kernel::census::Census;
use crate::kernel::{ItemClaims, ItemDump, ItemKey, ItemKind, ItemState, Op, RealKey, SetKey, SetKind, VirtualKey};
use crate::net::{IpFamily, Protocol};
use crate::sync::owner::{Owner, OwnerId, Owners};
use crate::sync::program::OwnedOp;
use crate::sync::tracked::{Pending, State, Tracked};

impl State for ItemState {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            // A set may be larger than it has to be.
            (ItemState::Capacity(wanted), ItemState::Capacity(found)) => found >= wanted,
            _ => self == other,
        }
    }
}

/// Items, wanted and known.
#[derive(Debug, Default)]
pub(crate) struct Items {
    tracked: Tracked<ItemKey, ItemState>,
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
            owner.items.push(key);
        }
        if !self.unclaimed.is_empty() {
            self.claim(owner);
        }
        if old.is_empty() {
            owner.items.shrink_to_fit();
            return;
        }
        let kept: HashSet<&ItemKey> = owner.items.iter().collect();
        let left: Vec<ItemKey> = old.into_iter().filter(|key| !kept.contains(key)).collect();
        for key in left {
            self.tracked.unwant(&key, id);
            if let ItemKey::VirtualServer(server) = key
                && self.tracked.wanted(&key).is_none()
            {
                self.vacated.push(server);
            }
            if !self.leave_excluded(&key) && self.tracked.contains(&key) {
                owner.items.push(key);
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
        for key in &owner.items {
            if let ItemKey::VirtualServer(server) = key
                && let Some(reals) = self.unclaimed.remove(server)
            {
                let reals = reals.into_iter().map(ItemKey::RealServer);
                claimed.extend(reals.filter(|real| self.tracked.pending(real) == Some(Pending::Remove)));
            }
        }
        owner.items.append(&mut claimed);
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

    /// How the kernel is known to hold an item; `None`: not at all.
    pub(crate) fn known(&self, key: &ItemKey) -> Option<ItemState> {
        self.tracked.known(key)
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
        owner.items.iter().filter(|key| wants(key)).count() == items.len()
            && items.iter().all(|(key, state)| self.tracked.wanted_by(key, id).is_some_and(|it| it.same(state)))
    }

    /// Owners of items that are wanted and not as they should be. A pass over everything.
    pub(crate) fn unsettled_owners(&self) -> impl Iterator<Item = OwnerId> {
        let unsettled = self.tracked.iter().filter(|(key, wanted, _)| wanted.is_some() && !self.settled(key));
        unsettled.flat_map(|(key, _, _)| self.tracked.owners(key))
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
                    let inside: Vec<ItemKey> =
                        self.tracked.iter().map(|(other, _, _)| *other).filter(|it| parent(it) == Some(*key)).collect();
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
            strays.items.push(key);
        }
    }

    /// Takes a dump for the truth about the items of a family. Returns how many were other than known, and gives what is ours
    /// and wanted by nobody to [`OwnerId::STRAYS`].
    pub(crate) fn observe(&mut self, owners: &mut Owners, family: IpFamily, dump: ItemDump) -> u64 {
        let mut ours: HashMap<ItemKey, ItemState> = dump.ours.into_iter().collect();
        let mut foreign: HashMap<ItemKey, ItemState> = dump.foreign.into_iter().collect();
        let known: Vec<ItemKey> = self
            .tracked
            .iter()
            .filter(|(key, _, _)| key.family().is_none_or(|of| of == family))
            .map(|(key, _, _)| *key)
            .collect();
        let mut drift = 0;
        for key in known {
            let found = ours.remove(&key).or_else(|| foreign.remove(&key));
            let same = match (self.tracked.known(&key), found) {
                (Some(known), Some(found)) => known.same(&found),
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
                strays.items.push(key);
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
fn parent(key: &ItemKey) -> Option<ItemKey> {
    match key {
        ItemKey::Element(set, _) => Some(ItemKey::Set(*set)),
        ItemKey::Address(_) => Some(ItemKey::Link),
        ItemKey::Set(_) | ItemKey::VirtualServer(_) | ItemKey::RealServer(_) | ItemKey::Route(_) | ItemKey::Link => {
            None
        }
    }
}

/// Pending operations on items, by phase.
#[derive(Debug, Default)]
pub(crate) struct ItemPlan {
    /// Sets and elements to make: before rules that look into the sets, and before what the rules protect.
    pub(crate) entries: Vec<OwnedOp>,
    /// Virtual servers with their real servers, then what makes their addresses local.
    pub(crate) servers: Vec<OwnedOp>,
    /// Real servers, virtual servers, addresses and routes to remove.
    pub(crate) removals: Vec<OwnedOp>,
    /// Elements, sets and the link to remove: they go last, since they tell whose a virtual server is.
    pub(crate) entry_removals: Vec<OwnedOp>,
    seen: HashSet<ItemKey>,
}

impl ItemPlan {
    /// Adds what is pending for one owner.
    pub(crate) fn add_owner(&mut self, items: &Items, id: OwnerId, owner: &Owner) {
        for key in &owner.items {
            let Some(pending) = items.tracked.pending(key) else { continue };
            if !self.seen.insert(*key) {
                continue;
            }
            let op = match pending {
                Pending::Add(state) => Op::AddItem(*key, state),
                Pending::Change(state) => Op::ChangeItem(*key, state),
                Pending::Remove => {
                    // It goes with what it is in.
                    let goes = |parent| items.tracked.pending(&parent) == Some(Pending::Remove);
                    if parent(key).is_some_and(goes) {
                        continue;
                    }
                    Op::DeleteItem(*key)
                }
            };
            let removes = matches!(op, Op::DeleteItem(_));
            let phase = match key.kind() {
                ItemKind::Set | ItemKind::Element if removes => &mut self.entry_removals,
                ItemKind::Link if removes => &mut self.entry_removals,
                ItemKind::Set | ItemKind::Element => &mut self.entries,
                _ if removes => &mut self.removals,
                _ => &mut self.servers,
            };
            phase.push(OwnedOp { owner: id, op });
        }
    }

    /// Puts the operations of each phase in order and makes room in sets that would overflow. Real servers are shuffled, in another
    /// way for each `node`: if all nodes began with the same one, it would get the first connection of each
    /// (kubernetes/kubernetes#121591).
    pub(crate) fn finish(&mut self, items: &Items, node: &str) {
        self.entries.sort_unstable_by_key(|owned| key_of(&owned.op).copied());
        self.make_room(items);
        self.servers.sort_unstable_by_key(|owned| server_order(&owned.op, node));
        self.removals.sort_unstable_by_key(|owned| key_of(&owned.op).map(|key| (removal_order(key), *key)));
        self.entry_removals
            .sort_unstable_by_key(|owned| key_of(&owned.op).map(|key| (removal_order(key), std::cmp::Reverse(*key))));
    }

    /// A set that is too small becomes larger before it gets more elements.
    fn make_room(&mut self, items: &Items) {
        // With the owner of the last one: who lacks room should the set not become larger.
        let mut needed: BTreeMap<SetKey, (u32, OwnerId)> = BTreeMap::new();
        for owned in &self.entries {
            if let Some(ItemKey::Element(set, _)) = key_of(&owned.op)
                && set.name.kind() != SetKind::Port
            {
                let (needed, last) = needed.entry(*set).or_insert_with(|| (items.census.elements(set), owned.owner));
                *needed += 1;
                *last = owned.owner;
            }
        }
        for (set, (needed, owner)) in needed {
            let key = ItemKey::Set(set);
            let known = match items.tracked.known(&key) {
                Some(ItemState::Capacity(capacity)) => capacity,
                _ => 0,
            };
            if needed <= known.max(SetKey::CAPACITY) {
                continue;
            }
            let state = ItemState::Capacity(needed.saturating_mul(2).checked_next_power_of_two().unwrap_or(u32::MAX));
            let own = self.entries.iter_mut().find(|owned| key_of(&owned.op) == Some(&key));
            match own.map(|owned| &mut owned.op) {
                Some(Op::AddItem(_, planned) | Op::ChangeItem(_, planned)) => *planned = state,
                Some(_) | None => {
                    self.entries.insert(0, OwnedOp { owner, op: Op::ChangeItem(key, state) });
                }
            }
        }
    }
}

fn key_of(op: &Op) -> Option<&ItemKey> {
    match op {
        Op::AddItem(key, _) | Op::ChangeItem(key, _) | Op::DeleteItem(key) => Some(key),
        _ => None,
    }
}

/// The families that an operation on an item is about.
pub(crate) fn families_of(op: &Op) -> impl Iterator<Item = IpFamily> {
    let family = key_of(op).and_then(ItemKey::family);
    IpFamily::ALL.into_iter().filter(move |of| family.is_none_or(|family| family == *of))
}

/// Each virtual server is followed at once by its real servers, new ones before those that get no more connections: at no moment
/// is it empty. When it stands, its address becomes local; the link is made before.
fn server_order(op: &Op, node: &str) -> (u8, Option<VirtualKey>, u8, u64, Option<ItemKey>) {
    let key = key_of(op).copied();
    let mut shuffle = 0;
    let (place, server, rank) = match &key {
        Some(ItemKey::Link) | None => (0, None, 0),
        Some(ItemKey::VirtualServer(server)) => (1, Some(*server), 0),
        Some(ItemKey::RealServer(real)) => {
            shuffle = FixedState::default().hash_one((node, real.address, real.port));
            let drains = matches!(op, Op::ChangeItem(_, ItemState::Weight(0)));
            (1, Some(real.server), if drains { 2 } else { 1 })
        }
        Some(_) => (2, None, 0),
    };
    (place, server, rank, shuffle, key)
}

/// What is in front of others goes first: no more packets arrive at what is removed afterwards.
fn removal_order(key: &ItemKey) -> u8 {
    match key.kind() {
        ItemKind::RealServer => 0,
        ItemKind::VirtualServer => 1,
        ItemKind::Route => 2,
        ItemKind::Address => 3,
        ItemKind::Element => 4,
        ItemKind::Set => 5,
        ItemKind::Link => 6,
    }
}
