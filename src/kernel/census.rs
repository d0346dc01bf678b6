//! A picture of all items that costs little to take and to keep up to date: two kernels with the same items have the same
//! one, and after any change but the exchange of an element or an address for another one it is different.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher};

use crate::kernel::{ItemKey, ItemState, SetKey, VirtualServer};
use crate::net::{IpFamily, PerFamily};

/// The picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The sum of a hash of each virtual server and real server, those of others included: how it is, too, as far as
    /// `/proc/net/ip_vs` shows it.
    servers: u64,
    /// How many elements each set has; empty sets are left out.
    elements: BTreeMap<SetKey, u32>,
    /// How many addresses the dummy link has, and how many local routes are ours.
    local: PerFamily<u32>,
}

impl Census {
    /// Adds an item.
    pub fn add(&mut self, key: &ItemKey, state: &ItemState) {
        match key {
            ItemKey::VirtualServer(_) | ItemKey::RealServer(_) => {
                self.servers = self.servers.wrapping_add(hash(key, state));
            }
            ItemKey::Element(set, _) => self.add_elements(*set, 1),
            ItemKey::Address(address) => self.local[IpFamily::of(*address)] += 1,
            ItemKey::Route(net) => self.local[IpFamily::of_net(net)] += 1,
            ItemKey::Set(_) | ItemKey::Link => {}
        }
    }

    /// Takes an item out that was added with this state.
    pub fn remove(&mut self, key: &ItemKey, state: &ItemState) {
        match key {
            ItemKey::VirtualServer(_) | ItemKey::RealServer(_) => {
                self.servers = self.servers.wrapping_sub(hash(key, state));
            }
            ItemKey::Element(set, _) => {
                if let Some(count) = self.elements.get_mut(set) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        self.elements.remove(set);
                    }
                }
            }
            ItemKey::Address(_) | ItemKey::Route(_) => {
                let count = &mut self.local[key.family().unwrap_or(IpFamily::V4)];
                *count = count.saturating_sub(1);
            }
            ItemKey::Set(_) | ItemKey::Link => {}
        }
    }

    /// Adds so many elements of a set.
    pub fn add_elements(&mut self, set: SetKey, count: u32) {
        if count > 0 {
            *self.elements.entry(set).or_default() += count;
        }
    }

    /// How many elements a set has.
    pub fn elements(&self, set: &SetKey) -> u32 {
        self.elements.get(set).copied().unwrap_or(0)
    }
}

fn hash(key: &ItemKey, state: &ItemState) -> u64 {
    let mut hasher = foldhash::quality::FixedState::default().build_hasher();
    key.hash(&mut hasher);
    match state {
        ItemState::Server(server) => {
            server.scheduler.hash(&mut hasher);
            let persistent = server.flags & VirtualServer::PERSISTENT != 0;
            persistent.then_some(server.persistence_seconds).hash(&mut hasher);
        }
        other => other.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::item::Scheduler;
    use crate::kernel::{Element, RealKey, SetName, VirtualKey};
    use crate::net::Protocol;

    #[test]
    fn what_is_added_and_removed_leaves_nothing_whatever_the_order() {
        let server = VirtualKey { address: "10.96.0.1".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        let real = RealKey { server, address: "10.244.0.2".parse().unwrap(), port: 8080 };
        let state = VirtualServer { scheduler: Scheduler::ROUND_ROBIN, flags: 0, persistence_seconds: 0 };
        let set = SetKey { family: IpFamily::V4, name: SetName::ClusterIp };
        let items = [
            (ItemKey::VirtualServer(server), ItemState::Server(state)),
            (ItemKey::RealServer(real), ItemState::Weight(1)),
            (ItemKey::Element(set, Element::IpPort(server.address, Protocol::Tcp, 80)), ItemState::Present),
            (ItemKey::Address(server.address), ItemState::Address { deprecated: false }),
        ];
        let of = |items: &[(ItemKey, ItemState)]| {
            items.iter().fold(Census::default(), |mut census, (key, state)| {
                census.add(key, state);
                census
            })
        };
        let mut backwards = items;
        backwards.reverse();
        assert_eq!(of(&items), of(&backwards));
        for left_out in 0..items.len() {
            let mut rest = items.to_vec();
            rest.remove(left_out);
            assert_ne!(of(&items), of(&rest));
        }
        let mut other = items;
        other[1].1 = ItemState::Weight(0);
        assert_ne!(of(&items), of(&other), "a weight counts");
        let mut census = of(&items);
        items.iter().for_each(|(key, state)| census.remove(key, state));
        assert_eq!(census, Census::default());
    }
}
