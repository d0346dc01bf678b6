//! What is pending for items, and the order in which it is carried out.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use crate::kernel::{ItemKey, ItemKind, ItemState, Op, PackedItem, SetKey, SetKind, VirtualKey};
use crate::net::IpFamily;
use crate::sync::items::{Items, parent};
use crate::sync::owner::{Owner, OwnerId};
use crate::sync::tracked::Pending;

/// An item about which something has to be done. What, the ledger says when its turn comes, so that a first sync does not hold
/// all operations at once.
#[derive(Clone, Debug)]
pub(crate) struct PlannedItem {
    pub(crate) owner: OwnerId,
    /// A real server that gets no new connections from now on.
    drains: Draining,
    key: PackedItem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Draining {
    No,
    Yes,
}

impl PlannedItem {
    /// The families that it is about: both for the link.
    pub(crate) fn families(&self) -> impl Iterator<Item = IpFamily> + use<> {
        let family = self.key.key().family();
        IpFamily::ALL.into_iter().filter(move |of| family.is_none_or(|family| family == *of))
    }
}

/// What is pending for items, by phase.
#[derive(Debug, Default)]
pub(crate) struct ItemPlan {
    /// Sets and elements to make: before rules that look into the sets, and before what the rules protect.
    pub(crate) entries: Vec<PlannedItem>,
    /// Virtual servers with their real servers, then what makes their addresses local.
    pub(crate) servers: Vec<PlannedItem>,
    /// Real servers, virtual servers, addresses and routes to remove.
    pub(crate) removals: Vec<PlannedItem>,
    /// Elements, sets and the link to remove: they go last, since they tell whose a virtual server is.
    pub(crate) entry_removals: Vec<PlannedItem>,
    /// Sets that have to be larger than they are wanted.
    pub(crate) room: Room,
}

/// How large sets have to be made that would overflow.
pub(crate) type Room = BTreeMap<SetKey, u32>;

impl ItemPlan {
    /// Adds what is pending for one owner.
    pub(crate) fn add_owner(&mut self, items: &Items, id: OwnerId, owner: &Owner) {
        for packed in owner.items.packed() {
            let key = packed.key();
            let Some(pending) = items.pending(&key) else { continue };
            let removes = pending == Pending::Remove;
            // It goes with what it is in.
            if removes && parent(&key).is_some_and(|parent| items.pending(&parent) == Some(Pending::Remove)) {
                continue;
            }
            let phase = match key.kind() {
                ItemKind::Set | ItemKind::Element | ItemKind::Link if removes => &mut self.entry_removals,
                ItemKind::Set | ItemKind::Element => &mut self.entries,
                _ if removes => &mut self.removals,
                _ => &mut self.servers,
            };
            let drains = if pending == Pending::Change(ItemState::Weight(0)) { Draining::Yes } else { Draining::No };
            phase.push(PlannedItem { owner: id, drains, key: packed.clone() });
        }
    }

    /// Puts each phase in order, with what several want in it once, and makes room in sets that would overflow. Real servers are
    /// shuffled, in another way for each `node`: if all nodes began with the same one, it would get the first connection of each
    /// (kubernetes/kubernetes#121591).
    pub(crate) fn finish(&mut self, items: &Items, node: &str) {
        sort(&mut self.entries, Ord::cmp);
        self.make_room(items);
        self.servers.sort_unstable_by(|one, other| server_order(one, other, node));
        self.servers.dedup_by(|one, other| one.key == other.key);
        sort(&mut self.removals, |one, other| (removal_order(one), one).cmp(&(removal_order(other), other)));
        // Backwards, of one kind after the other.
        sort(&mut self.entry_removals, |one, other| {
            removal_order(one).cmp(&removal_order(other)).then_with(|| other.cmp(one))
        });
    }

    /// A set that is too small becomes larger before it gets more elements.
    fn make_room(&mut self, items: &Items) {
        // With the owner of the last one: who lacks room should the set not become larger.
        let mut needed: BTreeMap<SetKey, (u32, OwnerId)> = BTreeMap::new();
        for planned in &self.entries {
            if let ItemKey::Element(set, _) = planned.key.key()
                && set.name.kind() != SetKind::Port
            {
                let (needed, last) = needed.entry(set).or_insert_with(|| (items.elements(&set), planned.owner));
                *needed += 1;
                *last = planned.owner;
            }
        }
        for (set, (needed, owner)) in needed {
            let key = ItemKey::Set(set);
            let known = match items.known(&key) {
                Some(ItemState::Capacity(capacity)) => capacity,
                _ => 0,
            };
            if needed <= known.max(SetKey::CAPACITY) {
                continue;
            }
            let capacity = needed.saturating_mul(2).checked_next_power_of_two().unwrap_or(u32::MAX);
            self.room.insert(set, capacity);
            let packed = PackedItem::of(&key);
            if self.entries.iter().all(|planned| planned.key != packed) {
                self.entries.insert(0, PlannedItem { owner, drains: Draining::No, key: packed });
            }
        }
    }
}

/// What is to be done about a planned item now; `None`: nothing any more.
pub(crate) fn operation(planned: &PlannedItem, items: &Items, room: &Room) -> Option<Op> {
    let key = planned.key.key();
    let pending = items.pending(&key);
    let more = if let ItemKey::Set(set) = key { room.get(&set).copied() } else { None };
    Some(match (pending, more) {
        (Some(Pending::Add(_)), Some(capacity)) => Op::AddItem(key, ItemState::Capacity(capacity)),
        (Some(Pending::Change(_)) | None, Some(capacity)) => Op::ChangeItem(key, ItemState::Capacity(capacity)),
        (Some(Pending::Add(state)), None) => Op::AddItem(key, state),
        (Some(Pending::Change(state)), None) => Op::ChangeItem(key, state),
        (Some(Pending::Remove), _) => Op::DeleteItem(key),
        (None, None) => return None,
    })
}

/// Of those who plan the same the first stays, whose failure it would be.
fn sort(phase: &mut Vec<PlannedItem>, mut order: impl FnMut(&ItemKey, &ItemKey) -> Ordering) {
    phase.sort_unstable_by(|one, other| {
        order(&one.key.key(), &other.key.key()).then_with(|| one.owner.cmp(&other.owner))
    });
    phase.dedup_by(|one, other| one.key == other.key);
}

/// Each virtual server is followed at once by its real servers, new ones before those that get no more connections: at no moment
/// is it empty. When it stands, its address becomes local; the link is made before.
fn server_order(one: &PlannedItem, other: &PlannedItem, node: &str) -> Ordering {
    let keys = [one, other].map(|planned| planned.key.key());
    let [place, other_place] = keys.map(|key| server_place(&key));
    let shuffled = |key: &ItemKey| match key {
        ItemKey::RealServer(real) => FixedState::default().hash_one((node, real.address, real.port)),
        _ => 0,
    };
    let [key, other_key] = &keys;
    place
        .cmp(&other_place)
        .then_with(|| one.drains.cmp(&other.drains))
        .then_with(|| shuffled(key).cmp(&shuffled(other_key)))
        .then_with(|| key.cmp(other_key))
        .then_with(|| one.owner.cmp(&other.owner))
}

fn server_place(key: &ItemKey) -> (u8, Option<VirtualKey>, u8) {
    match key {
        ItemKey::Link => (0, None, 0),
        ItemKey::VirtualServer(server) => (1, Some(*server), 0),
        ItemKey::RealServer(real) => (1, Some(real.server), 1),
        ItemKey::Set(_) | ItemKey::Element(..) | ItemKey::Address(_) | ItemKey::Route(_) => (2, None, 0),
    }
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
