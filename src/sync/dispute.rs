//! Virtual servers that several Services ask for: two external IPs with the same port, or a VIP that is another one's cluster IP.
//!
//! The Service with the lowest name has it, with his endpoints only, whatever came first: so it is the same after a restart. The
//! others have what is left of theirs, and get the virtual server when he gives it up.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::backend::Fragment;
use crate::kernel::{Element, ItemKey, Kernel, SetName, VirtualKey};
use crate::model::ServiceName;
use crate::sync::clock::Clock;
use crate::sync::engine::Engine;
use crate::sync::owner::OwnerId;

/// Who was turned away where, and who has to be asked again.
#[derive(Debug, Default)]
pub(crate) struct Disputes {
    turned_away: HashMap<VirtualKey, BTreeSet<ServiceName>>,
    again: BTreeSet<ServiceName>,
}

impl Disputes {
    /// A Service to compile again, since what he may have has changed.
    pub(crate) fn pop(&mut self) -> Option<ServiceName> {
        self.again.pop_first()
    }
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// Takes out of a fragment what is another Service's, and remembers who has to give way to this one.
    pub(super) fn settle_disputes(&mut self, name: &ServiceName, id: OwnerId, fragment: &mut Fragment) {
        let (lost, won) = self.disputed(name, id, fragment);
        self.disputes.again.extend(won);
        for server in &lost {
            self.disputes.turned_away.entry(*server).or_default().insert(name.clone());
        }
        give_up(&lost, fragment);
    }

    /// The fragment as it would be settled.
    pub(super) fn settled_fragment(&self, name: &ServiceName, id: OwnerId, mut fragment: Fragment) -> Fragment {
        give_up(&self.disputed(name, id, &fragment).0, &mut fragment);
        fragment
    }

    /// Those who were turned away at a virtual server that nobody wants any more are asked again.
    pub(super) fn reopen_disputes(&mut self) {
        for server in self.ledger.items.take_vacated() {
            self.disputes.again.extend(self.disputes.turned_away.remove(&server).into_iter().flatten());
        }
    }

    /// The virtual servers of a fragment that are another one's, and the Services that have one that should be this one's.
    fn disputed(
        &self,
        name: &ServiceName,
        id: OwnerId,
        fragment: &Fragment,
    ) -> (HashSet<VirtualKey>, Vec<ServiceName>) {
        let (mut lost, mut won) = (HashSet::new(), Vec::new());
        for (key, _) in &fragment.items {
            let ItemKey::VirtualServer(server) = key else { continue };
            let others = self.ledger.items.owners(key).filter(|owner| *owner != id);
            for other in others.filter_map(|owner| self.owners.get(owner)?.name.as_ref()) {
                if other < name {
                    lost.insert(*server);
                } else {
                    won.push(other.clone());
                }
            }
        }
        (lost, won)
    }
}

/// Takes out virtual servers with everything that is about them alone.
fn give_up(lost: &HashSet<VirtualKey>, fragment: &mut Fragment) {
    if lost.is_empty() {
        return;
    }
    let is_lost = |key: &ItemKey| match *key {
        ItemKey::VirtualServer(server) => lost.contains(&server),
        ItemKey::RealServer(real) => lost.contains(&real.server),
        ItemKey::Element(set, element) if set.name != SetName::LoopBack => match element {
            Element::IpPort(address, protocol, port)
            | Element::IpPortIp(address, protocol, port, _)
            | Element::IpPortNet(address, protocol, port, _) => lost.contains(&VirtualKey { address, protocol, port }),
            Element::Ip(_) | Element::Port(_) => false,
        },
        _ => false,
    };
    fragment.items.retain(|(key, _)| !is_lost(key));
}
