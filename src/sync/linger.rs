//! What IPVS mode has left behind, while another mode serves.
//!
//! An established connection of the kernel's load balancer lives as long as its virtual server, its real server and the local
//! address that leads its packets there. Rules of iptables mode look at new connections only. So nothing is removed before the
//! rules stand, and then a virtual server with connections stays, and what it needs with it, at weight 0: a connection that no
//! rule takes is refused there, as by a Service without endpoints. What the next process has to know is in the kernel: it finds
//! the same leftovers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::kernel::set::Element;
use crate::kernel::{ItemKey, ItemState, Kernel, SetKey, SetName, VirtualKey};
use crate::net::{IpFamily, Protocol};
use crate::sync::clock::Clock;
use crate::sync::engine::{Engine, Leftovers, Run};
use crate::sync::owner::OwnerId;

/// How long to wait between the first two looks at connections. The wait doubles from then on.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two looks.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How often a look is put off since not all rules could be programmed; single ones that the kernel does not take are not
/// waited for without end.
const PATIENCE: u32 = 5;

/// The virtual servers that stay for now.
#[derive(Debug, Default)]
pub(crate) struct Lingering {
    servers: BTreeSet<VirtualKey>,
    /// Real servers of all of them.
    count: usize,
    /// When to look at the connections.
    look: Option<Instant>,
    wait: Duration,
    put_off: u32,
}

impl Lingering {
    /// Real servers that stay.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// When there is something to do.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.look
    }
}

/// What of the items is needed by virtual servers.
struct Needed<'a> {
    servers: &'a BTreeSet<VirtualKey>,
    addresses: BTreeSet<std::net::IpAddr>,
    ports: BTreeSet<(IpFamily, Protocol, u16)>,
    sets: BTreeSet<SetKey>,
}

impl<'a> Needed<'a> {
    fn by(servers: &'a BTreeSet<VirtualKey>, items: &[ItemKey]) -> Needed<'a> {
        let addresses = servers.iter().map(|server| server.address).collect();
        let ports = servers.iter().map(|server| (server.family(), server.protocol, server.port)).collect();
        let mut needed = Needed { servers, addresses, ports, sets: BTreeSet::new() };
        let sets = items.iter().filter_map(|key| match key {
            ItemKey::Element(set, element) if needed.has_element(*set, element) => Some(*set),
            _ => None,
        });
        needed.sets = sets.collect();
        needed
    }

    /// Whether an element tells whose one of the virtual servers is.
    fn has_element(&self, set: SetKey, element: &Element) -> bool {
        match (set.name, element) {
            (SetName::NodePortTcp, Element::Port(port)) => self.ports.contains(&(set.family, Protocol::Tcp, *port)),
            (_, Element::IpPort(address, protocol, port)) => {
                self.servers.contains(&VirtualKey { address: *address, protocol: *protocol, port: *port })
            }
            _ => false,
        }
    }

    fn has(&self, key: &ItemKey) -> bool {
        match key {
            ItemKey::VirtualServer(server) => self.servers.contains(server),
            ItemKey::RealServer(real) => self.servers.contains(&real.server),
            ItemKey::Element(set, element) => self.has_element(*set, element),
            ItemKey::Set(set) => self.sets.contains(set),
            ItemKey::Address(address) => self.addresses.contains(address),
            ItemKey::Route(net) => self.addresses.iter().any(|address| net.contains(address)),
            ItemKey::Link => !self.servers.is_empty(),
        }
    }
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// Whatever was found of IPVS mode stays as it is until [`Engine::look_at_leftovers`], soon after this sync.
    pub(super) fn keep_leftovers(&mut self) {
        let Some(strays) = self.owners.get_mut(OwnerId::STRAYS) else { return };
        let lingers = !self.serves_items && self.options.leftovers == Leftovers::Linger;
        if !lingers || !strays.items.iter().any(|key| matches!(key, ItemKey::VirtualServer(_))) {
            return;
        }
        let found = std::mem::take(&mut strays.items);
        let Some(drains) = self.owners.get_mut(OwnerId::DRAINS) else { return };
        found.iter().for_each(|key| drains.items.push(&key));
        // All of it once more: what the other family had no need of this one may need, as the link.
        for key in drains.items.iter() {
            if let Some(state) = self.ledger.items.known(&key) {
                self.ledger.items.want(&key, OwnerId::DRAINS, state);
            }
        }
        let is_real = |key: &ItemKey| matches!(key, ItemKey::RealServer(_));
        self.lingering.count = drains.items.iter().filter(is_real).count();
        self.lingering.look = Some(self.clock.now());
        (self.lingering.wait, self.lingering.put_off) = (FIRST_WAIT, 0);
    }

    /// Looks at the connections of virtual servers that stay. What none of those with connections needs is wanted by nobody
    /// from now on. Datagrams have nothing to wait for.
    pub(super) fn look_at_leftovers(&mut self, run: &mut Run) {
        if self.lingering.look.is_none_or(|at| at > run.start) {
            return;
        }
        let wait = self.lingering.wait;
        self.lingering.wait = (wait * 2).min(LONGEST_WAIT);
        self.lingering.look = Some(run.start + wait);
        if self.owners.next_retry().is_some() && self.lingering.put_off < PATIENCE {
            self.lingering.put_off += 1;
            return;
        }
        let drains = self.owners.get(OwnerId::DRAINS);
        let items: Vec<ItemKey> = drains.map(|drains| drains.items.iter().collect()).unwrap_or_default();
        let servers: Vec<VirtualKey> = items
            .iter()
            .filter_map(|key| if let ItemKey::VirtualServer(server) = key { Some(*server) } else { None })
            .filter(|server| server.protocol != Protocol::Udp)
            .collect();
        self.lingering.servers = servers.into_iter().filter(|server| self.has_connections(server)).collect();
        let needed = Needed::by(&self.lingering.servers, &items);
        self.lingering.count = 0;
        for key in &items {
            if !needed.has(key) {
                self.ledger.items.unwant(key, OwnerId::DRAINS);
            } else if matches!(key, ItemKey::RealServer(_)) {
                self.lingering.count += 1;
                self.ledger.items.want(key, OwnerId::DRAINS, ItemState::Weight(0));
            }
        }
        if self.lingering.servers.is_empty() {
            self.lingering.look = None;
        }
        run.touched.insert(OwnerId::DRAINS);
    }

    /// A virtual server whose connections cannot be looked at may have some.
    fn has_connections(&mut self, server: &VirtualKey) -> bool {
        match self.kernel.connections(server) {
            Ok(found) => found.iter().any(|(_, it)| it.active > 0 || it.inactive > 0),
            Err(error) => {
                tracing::warn!(%server, %error, "cannot look at the connections that IPVS mode has left");
                true
            }
        }
    }
}
