//! Items, wanted and known, under packed keys and with packed states: a big node has hundreds of thousands.

use std::collections::HashMap;

use crate::kernel::{ItemKey, ItemState, PackedItem};
use crate::sync::owner::OwnerId;
use crate::sync::tracked::{Pending, State, Tracked};

/// An [`ItemState`] of 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PackedState {
    Present,
    Capacity(u32),
    Weight(u32),
    Address {
        deprecated: bool,
    },
    /// The one with this number in the table.
    Other(u32),
}

impl State for PackedState {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            // A set may be larger than it has to be.
            (PackedState::Capacity(wanted), PackedState::Capacity(found)) => found >= wanted,
            _ => self == other,
        }
    }
}

/// [`Tracked`], for items.
#[derive(Debug, Default)]
pub(crate) struct ItemTable {
    entries: Tracked<PackedItem, PackedState>,
    states: States,
}

/// States of virtual servers and routes that have ever been met. There are few different ones, and none is forgotten.
#[derive(Debug, Default)]
struct States {
    all: Vec<ItemState>,
    numbers: HashMap<ItemState, u32>,
}

impl States {
    fn pack(&mut self, state: ItemState) -> PackedState {
        match state {
            ItemState::Present => PackedState::Present,
            ItemState::Capacity(capacity) => PackedState::Capacity(capacity),
            ItemState::Weight(weight) => PackedState::Weight(weight),
            ItemState::Address { deprecated } => PackedState::Address { deprecated },
            ItemState::Server(_) | ItemState::Source(_) => {
                let number = *self.numbers.entry(state).or_insert_with(|| {
                    self.all.push(state);
                    self.all.len() as u32 - 1
                });
                PackedState::Other(number)
            }
        }
    }

    fn state(&self, packed: PackedState) -> ItemState {
        match packed {
            PackedState::Present => ItemState::Present,
            PackedState::Capacity(capacity) => ItemState::Capacity(capacity),
            PackedState::Weight(weight) => ItemState::Weight(weight),
            PackedState::Address { deprecated } => ItemState::Address { deprecated },
            // Numbers come from `pack` alone, so that there is always a state.
            PackedState::Other(number) => self.all.get(number as usize).copied().unwrap_or(ItemState::Present),
        }
    }
}

impl ItemTable {
    /// The owner wants the item like this.
    pub(crate) fn want(&mut self, key: &ItemKey, owner: OwnerId, state: ItemState) {
        let state = self.states.pack(state);
        self.entries.want(&PackedItem::of(key), owner, state);
    }

    /// The owner does not want the item any more.
    pub(crate) fn unwant(&mut self, key: &ItemKey, owner: OwnerId) {
        self.entries.unwant(&PackedItem::of(key), owner);
    }

    /// The kernel is now known to hold this. Returns what was known before.
    pub(crate) fn learn(&mut self, key: &ItemKey, known: Option<ItemState>) -> Option<ItemState> {
        let known = known.map(|state| self.states.pack(state));
        self.entries.learn(&PackedItem::of(key), known).map(|before| self.states.state(before))
    }

    /// What is to be done about an item.
    pub(crate) fn pending(&self, key: &ItemKey) -> Option<Pending<ItemState>> {
        Some(match self.entries.pending(&PackedItem::of(key))? {
            Pending::Add(state) => Pending::Add(self.states.state(state)),
            Pending::Change(state) => Pending::Change(self.states.state(state)),
            Pending::Remove => Pending::Remove,
        })
    }

    /// How the item is wanted.
    pub(crate) fn wanted(&self, key: &ItemKey) -> Option<ItemState> {
        Some(self.states.state(self.entries.wanted(&PackedItem::of(key))?))
    }

    /// Whether the owner wants the item, and like this.
    pub(crate) fn is_wanted_like(&self, key: &ItemKey, owner: OwnerId, state: &ItemState) -> bool {
        let wanted = self.entries.wanted_by(&PackedItem::of(key), owner);
        wanted.is_some_and(|wanted| same(&self.states.state(wanted), state))
    }

    /// What the kernel is known to hold.
    pub(crate) fn known(&self, key: &ItemKey) -> Option<ItemState> {
        Some(self.states.state(self.entries.known(&PackedItem::of(key))?))
    }

    /// Whether there is anything to say about the item.
    pub(crate) fn contains(&self, key: &ItemKey) -> bool {
        self.entries.contains(&PackedItem::of(key))
    }

    /// Whether this owner wants the item.
    pub(crate) fn wants(&self, key: &ItemKey, owner: OwnerId) -> bool {
        self.entries.wants(&PackedItem::of(key), owner)
    }

    /// The owners of an item.
    pub(crate) fn owners(&self, key: &ItemKey) -> impl Iterator<Item = OwnerId> {
        self.entries.owners(&PackedItem::of(key))
    }

    /// The owners of items that are wanted and not as they should be. A pass over everything.
    pub(crate) fn unsettled_owners(&self) -> impl Iterator<Item = OwnerId> {
        let unsettled =
            self.entries.iter().filter(|(key, wanted, _)| wanted.is_some() && self.entries.pending(key).is_some());
        unsettled.flat_map(|(key, _, _)| self.entries.owners(key))
    }

    /// All items.
    pub(crate) fn keys(&self) -> impl Iterator<Item = ItemKey> {
        self.entries.iter().map(|(key, _, _)| key.key())
    }
}

/// Whether the kernel need not be touched to get from one state to the other.
pub(crate) fn same(wanted: &ItemState, found: &ItemState) -> bool {
    match (wanted, found) {
        (ItemState::Capacity(wanted), ItemState::Capacity(found)) => found >= wanted,
        _ => wanted == found,
    }
}

/// Some items, in order.
#[derive(Debug, Default)]
pub(crate) struct ItemList(Vec<PackedItem>);

impl ItemList {
    /// The items.
    pub(crate) fn iter(&self) -> impl Iterator<Item = ItemKey> {
        self.0.iter().map(PackedItem::key)
    }

    /// The same, packed.
    pub(crate) fn packed(&self) -> impl Iterator<Item = &PackedItem> {
        self.0.iter()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends one.
    pub(crate) fn push(&mut self, item: &ItemKey) {
        self.0.push(PackedItem::of(item));
    }

    /// Keeps those that `keep` wants.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&ItemKey) -> bool) {
        self.0.retain(|item| keep(&item.key()));
    }

    /// Gives back room that is not used.
    pub(crate) fn shrink_to_fit(&mut self) {
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::item::{Scheduler, VirtualServer};

    #[test]
    fn a_packed_state_is_small_and_becomes_the_same_again() {
        assert_eq!(size_of::<PackedState>(), 8);
        let mut states = States::default();
        let server = |seconds| {
            let flags = VirtualServer::PERSISTENT;
            ItemState::Server(VirtualServer { scheduler: Scheduler::ROUND_ROBIN, flags, persistence_seconds: seconds })
        };
        let all = [
            ItemState::Present,
            ItemState::Capacity(65536),
            ItemState::Weight(0),
            ItemState::Address { deprecated: true },
            server(1),
            server(2),
            ItemState::Source(None),
            server(1),
        ];
        let packed = all.map(|state| states.pack(state));
        assert_eq!(packed.map(|packed| states.state(packed)), all);
        assert_eq!(packed[4], packed[7]);
        assert_eq!(states.all.len(), 3);
    }
}
