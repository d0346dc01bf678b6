//! Items of the fake kernel, with the preconditions of the real one: `tests/lab_items` runs one suite on both.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::kernel::census::Census;
use crate::kernel::{
    Connections, Element, ErrorKind, ItemDump, ItemKey, ItemState, KernelError, Op, RealKey, SetKey, SetKind,
    VirtualKey,
};
use crate::net::{IpFamily, PerFamily};

/// All items, and the connections of real servers.
#[derive(Clone, Debug, Default)]
pub struct FakeItems {
    /// What exists.
    pub all: BTreeMap<ItemKey, ItemState>,
    /// Connections; a real server that is not listed has none.
    pub connections: BTreeMap<RealKey, Connections>,
    /// How many elements each set has, as of a number of items: tests change those behind its back.
    sizes: (usize, BTreeMap<SetKey, usize>),
}

type Refusal = (ErrorKind, &'static str);

impl FakeItems {
    /// Carries out one operation. `in_use` tells whether a rule looks into a set of this name; `local` are the addresses of the
    /// node.
    pub(super) fn apply(
        &mut self,
        op: &Op,
        in_use: impl Fn(&str) -> bool,
        local: &PerFamily<Vec<IpAddr>>,
    ) -> Result<(), KernelError> {
        let result = match op {
            Op::AddItem(ItemKey::Route(_), state) | Op::ChangeItem(ItemKey::Route(_), state)
                if !self.can_send_from(state, local) && self.is_expected(op) =>
            {
                Err((ErrorKind::Rejected, "the source is not an address of this node"))
            }
            Op::AddItem(key, _) if self.all.contains_key(key) => Err((ErrorKind::Exists, "it exists")),
            Op::AddItem(key, state) => self.check(key, state).map(|()| self.add(*key, *state)),
            Op::ChangeItem(key, state) => self.change(key, *state),
            Op::DeleteItem(key) if !self.all.contains_key(key) => Err((ErrorKind::NotFound, "there is none")),
            Op::DeleteItem(ItemKey::Set(set)) if in_use(set.as_str()) => Err((ErrorKind::Busy, "a rule refers to it")),
            Op::DeleteItem(key) => {
                self.delete(key);
                Ok(())
            }
            _ => Ok(()),
        };
        result.map_err(|(kind, why)| KernelError::new(kind, format!("{op}: {why}")))
    }

    /// Whether the item is missing that is to be added, or there that is to be changed.
    fn is_expected(&self, op: &Op) -> bool {
        match op {
            Op::AddItem(key, _) => !self.all.contains_key(key),
            Op::ChangeItem(key, _) | Op::DeleteItem(key) => self.all.contains_key(key),
            _ => true,
        }
    }

    /// Whether the source of a route is an address of the node. A test that gives the node no addresses means any.
    fn can_send_from(&self, state: &ItemState, local: &PerFamily<Vec<IpAddr>>) -> bool {
        let ItemState::Source(Some(source)) = state else { return true };
        let known = &local[IpFamily::of(*source)];
        known.is_empty() || known.contains(source) || self.all.contains_key(&ItemKey::Address(*source))
    }

    /// Whether an item of this key and state can be there.
    fn check(&mut self, key: &ItemKey, state: &ItemState) -> Result<(), Refusal> {
        match (key, state) {
            (ItemKey::Element(set, element), _) => {
                let Some(ItemState::Capacity(capacity)) = self.all.get(&ItemKey::Set(*set)).copied() else {
                    return Err((ErrorKind::NotFound, "no such set"));
                };
                if !fits(set, element) {
                    return Err((ErrorKind::Rejected, "the set is of another type"));
                }
                let full = set.name.kind() != SetKind::Port && self.elements(set) >= capacity as usize;
                if full { Err((ErrorKind::NoSpace, "the set is full")) } else { Ok(()) }
            }
            (ItemKey::RealServer(_), ItemState::Weight(weight)) if i32::try_from(*weight).is_err() => {
                Err((ErrorKind::Rejected, "the weight is too big"))
            }
            (ItemKey::RealServer(real), _) => {
                if !self.all.contains_key(&ItemKey::VirtualServer(real.server)) {
                    return Err((ErrorKind::NotFound, "no such virtual server"));
                }
                let valid = IpFamily::of(real.address) == real.server.family()
                    && !real.address.is_unspecified()
                    && !real.address.is_multicast();
                if valid { Ok(()) } else { Err((ErrorKind::Rejected, "not an address for a real server")) }
            }
            (ItemKey::Set(set), _) if set.name.kind() == SetKind::Port => Ok(()),
            (ItemKey::Set(set), ItemState::Capacity(capacity)) if self.elements(set) > *capacity as usize => {
                Err((ErrorKind::NoSpace, "the set is full"))
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, key: ItemKey, state: ItemState) {
        if matches!(key, ItemKey::Address(_)) {
            self.all.insert(ItemKey::Link, ItemState::Present);
        }
        if let (ItemKey::Element(set, _), true) = (&key, self.sizes.0 == self.all.len()) {
            self.sizes.0 += 1;
            *self.sizes.1.entry(*set).or_default() += 1;
        }
        self.all.insert(key, state);
    }

    fn change(&mut self, key: &ItemKey, state: ItemState) -> Result<(), Refusal> {
        if !self.all.contains_key(key) {
            return Err((ErrorKind::NotFound, "there is none"));
        }
        if matches!(key, ItemKey::Set(_) | ItemKey::RealServer(_)) {
            self.check(key, &state)?;
        }
        self.all.insert(*key, state);
        Ok(())
    }

    fn delete(&mut self, key: &ItemKey) {
        let goes = |other: &ItemKey| match (key, other) {
            (ItemKey::Set(set), ItemKey::Element(of, _)) => of == set,
            (ItemKey::VirtualServer(server), ItemKey::RealServer(real)) => real.server == *server,
            (ItemKey::Link, ItemKey::Address(_)) => true,
            _ => other == key,
        };
        self.all.retain(|other, _| !goes(other));
        self.connections.retain(|real, _| !goes(&ItemKey::RealServer(*real)));
    }

    fn elements(&mut self, set: &SetKey) -> usize {
        let (counted, sizes) = &mut self.sizes;
        if *counted != self.all.len() {
            *counted = self.all.len();
            sizes.clear();
            for key in self.all.keys() {
                if let ItemKey::Element(of, _) = key {
                    *sizes.entry(*of).or_default() += 1;
                }
            }
        }
        sizes.get(set).copied().unwrap_or(0)
    }

    /// The picture of these families.
    pub(super) fn census(&self, families: PerFamily<bool>) -> Census {
        let mut census = Census::default();
        let own = self.all.iter().filter(|(key, _)| key.family().is_none_or(|family| families[family]));
        own.for_each(|(key, state)| census.add(key, state));
        census
    }

    /// What exists in a family, sorted into ours and others'.
    pub(super) fn dump(&self, family: IpFamily, local: &[IpAddr]) -> ItemDump {
        let own = self.all.iter().filter(|(key, _)| key.family().is_none_or(|of| of == family));
        // A set of ports has room for all.
        let told = |key: &ItemKey, state: &ItemState| match key {
            ItemKey::Set(set) if set.name.kind() == SetKind::Port => ItemState::Capacity(u32::MAX),
            _ => *state,
        };
        ItemDump::of(own.map(|(key, state)| (*key, told(key, state))).collect(), local.iter().copied())
    }

    /// The real servers of a virtual server with their connections.
    pub(super) fn of_server(&self, server: &VirtualKey) -> Vec<(RealKey, Connections)> {
        self.all
            .keys()
            .filter_map(|key| match key {
                ItemKey::RealServer(real) if real.server == *server => Some(*real),
                _ => None,
            })
            .map(|real| (real, self.connections.get(&real).copied().unwrap_or_default()))
            .collect()
    }
}

fn fits(set: &SetKey, element: &Element) -> bool {
    let kind = match element {
        Element::Ip(_) => SetKind::Ip,
        Element::IpPort(..) => SetKind::IpPort,
        Element::IpPortIp(..) => SetKind::IpPortIp,
        Element::IpPortNet(..) => SetKind::IpPortNet,
        Element::Port(_) => SetKind::Port,
    };
    kind == set.name.kind()
}
