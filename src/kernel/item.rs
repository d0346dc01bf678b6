//! What is configured by netlink: sets and their elements, virtual servers and their real servers, addresses, routes and
//! the dummy link. Each is an item with a key, which says which one it is, and a state, which says how it is.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::kernel::set::{Element, SetKey, SetName};
use crate::net::{IpFamily, Protocol};

/// The dummy link that carries the addresses of Services.
pub const DUMMY_LINK: &str = "kube-ipvs0";

/// An address and port on which the kernel balances load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualKey {
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, not 0.
    pub port: u16,
}

impl VirtualKey {
    /// The family of the address.
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.address)
    }
}

impl fmt::Display for VirtualKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.address, self.port))
    }
}

/// A server behind a virtual one. Small on purpose: a big node has hundreds of thousands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RealKey {
    /// In front of it.
    pub server: VirtualKey,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for RealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.server, SocketAddr::new(self.address, self.port))
    }
}

/// The name of a scheduler: 1 to 15 bytes of lower-case letters, digits, `-` and `_` (`IP_VS_SCHEDNAME_MAXLEN` is 16 with its
/// terminating zero). The kernel loads the module `ip_vs_<name>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scheduler([u8; 16]);

impl Scheduler {
    /// Checks a name.
    pub fn new(name: &str) -> Option<Scheduler> {
        let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        let mut bytes = [0; 16];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        ((1..16).contains(&name.len()) && name.bytes().all(valid)).then_some(Scheduler(bytes))
    }

    /// `rr`: one after the other.
    pub const ROUND_ROBIN: Scheduler = Scheduler([b'r', b'r', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

    /// The name.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        self.0.get(..length).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a virtual server balances load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VirtualServer {
    /// By which scheduler.
    pub scheduler: Scheduler,
    /// `IP_VS_SVC_F_*` without those that the kernel sets itself: see [`VirtualServer::PERSISTENT`] and the others.
    pub flags: u32,
    /// How long a client keeps its real server, in seconds; 0 without [`VirtualServer::PERSISTENT`].
    pub persistence_seconds: u32,
}

impl VirtualServer {
    /// `IP_VS_SVC_F_PERSISTENT`: a client keeps its real server.
    pub const PERSISTENT: u32 = 0x1;
    /// `IP_VS_SVC_F_SCHED2`: `mh` (and `sh`) look at the client's port, too.
    pub const SCHEDULER_2: u32 = 0x10;
}

/// Which item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ItemKey {
    /// A set.
    Set(SetKey),
    /// An element of a set.
    Element(SetKey, Element),
    /// A virtual server.
    VirtualServer(VirtualKey),
    /// A real server.
    RealServer(RealKey),
    /// An address of the dummy link [`DUMMY_LINK`]. Adding one makes the link if it is missing.
    Address(IpAddr),
    /// A route that makes a network local.
    Route(IpNet),
    /// The dummy link. Deleting it deletes its addresses.
    Link,
}

/// How an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ItemState {
    /// There is nothing to say but that it exists: elements, the link.
    Present,
    /// A set with room for so many elements; what is asked for of a set of ports is not looked at.
    Capacity(u32),
    /// A virtual server.
    Server(VirtualServer),
    /// A real server, with its weight; 0: no new connections.
    Weight(u32),
    /// An address; `deprecated`: the kernel does not choose it as a source by itself.
    Address {
        /// `IFA_F_DEPRECATED`, or a preferred lifetime of 0.
        deprecated: bool,
    },
    /// A route, with the address from which this host sends along it.
    Source(Option<IpAddr>),
}

impl ItemKey {
    /// The family; `None` for the link, which is there for both.
    pub fn family(&self) -> Option<IpFamily> {
        match self {
            ItemKey::Set(set) | ItemKey::Element(set, _) => Some(set.family),
            ItemKey::VirtualServer(server) => Some(server.family()),
            ItemKey::RealServer(real) => Some(real.server.family()),
            ItemKey::Address(address) => Some(IpFamily::of(*address)),
            ItemKey::Route(net) => Some(IpFamily::of_net(net)),
            ItemKey::Link => None,
        }
    }

    /// What kind of item it is, for metrics and logs.
    pub fn kind(&self) -> ItemKind {
        match self {
            ItemKey::Set(_) => ItemKind::Set,
            ItemKey::Element(..) => ItemKind::Element,
            ItemKey::VirtualServer(_) => ItemKind::VirtualServer,
            ItemKey::RealServer(_) => ItemKind::RealServer,
            ItemKey::Address(_) => ItemKind::Address,
            ItemKey::Route(_) => ItemKind::Route,
            ItemKey::Link => ItemKind::Link,
        }
    }
}

impl fmt::Display for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ItemKey::Set(set) => write!(f, "set {set}"),
            ItemKey::Element(set, element) => write!(f, "set {set} element {element}"),
            ItemKey::VirtualServer(server) => write!(f, "virtual server {server}"),
            ItemKey::RealServer(real) => write!(f, "real server {real}"),
            ItemKey::Address(address) => write!(f, "address {address} on {DUMMY_LINK}"),
            ItemKey::Route(net) => write!(f, "local route {net}"),
            ItemKey::Link => write!(f, "link {DUMMY_LINK}"),
        }
    }
}

impl fmt::Display for ItemState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ItemState::Present => Ok(()),
            ItemState::Capacity(capacity) => write!(f, " for {capacity} elements"),
            ItemState::Server(server) => {
                write!(f, " {}", server.scheduler.as_str())?;
                if server.flags & VirtualServer::PERSISTENT != 0 {
                    write!(f, ", persistent for {} s", server.persistence_seconds)?;
                }
                let rest = server.flags & !VirtualServer::PERSISTENT;
                if rest == 0 { Ok(()) } else { write!(f, ", flags {rest:#x}") }
            }
            ItemState::Weight(weight) => write!(f, " weight {weight}"),
            ItemState::Address { deprecated: false } | ItemState::Source(None) => Ok(()),
            ItemState::Address { deprecated: true } => write!(f, " deprecated"),
            ItemState::Source(Some(source)) => write!(f, " from {source}"),
        }
    }
}

/// The kinds of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ItemKind {
    /// A set.
    Set,
    /// An element of a set.
    Element,
    /// A virtual server.
    VirtualServer,
    /// A real server.
    RealServer,
    /// An address of the dummy link.
    Address,
    /// A local route.
    Route,
    /// The dummy link.
    Link,
}

impl ItemKind {
    /// All kinds.
    pub const ALL: [ItemKind; 7] = [
        ItemKind::Set,
        ItemKind::Element,
        ItemKind::VirtualServer,
        ItemKind::RealServer,
        ItemKind::Address,
        ItemKind::Route,
        ItemKind::Link,
    ];

    /// The name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            ItemKind::Set => "set",
            ItemKind::Element => "set_element",
            ItemKind::VirtualServer => "virtual_server",
            ItemKind::RealServer => "real_server",
            ItemKind::Address => "address",
            ItemKind::Route => "route",
            ItemKind::Link => "link",
        }
    }
}

/// What of the items is ours.
///
/// Sets are ours by their names, addresses by the link that carries them, routes by a mark on them. A virtual server carries no
/// mark: it is ours if its address and port are entered in one of our sets (see [`Registry`]), which is why an element comes
/// before its virtual server and goes after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemClaims {
    /// The mode serves with items: what its kernel modules are needed for may be loaded. If not, they are only looked for, in
    /// order to remove what another mode has left behind.
    pub serving: bool,
    /// Virtual servers with these addresses are never deleted (`excludeCIDRs`).
    pub excluded: Vec<IpNet>,
}

impl ItemClaims {
    /// Whether an address is excluded.
    pub fn excludes(&self, address: IpAddr) -> bool {
        self.excluded.iter().any(|net| net.contains(&address))
    }
}

/// The addresses and ports that our sets tell of: by them a restarted process recognises its virtual servers.
///
/// A set of node ports tells no address. What else has such a port number is ours on the addresses of this host only: another
/// program may balance the same port on an address that this host does not have now.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    local: HashSet<IpAddr>,
    services: HashSet<(IpAddr, Protocol, u16)>,
    node_ports: HashSet<(IpFamily, Protocol, u16)>,
}

impl Registry {
    /// An empty one, on a host with these addresses.
    pub fn new(local: impl IntoIterator<Item = IpAddr>) -> Registry {
        Registry { local: local.into_iter().collect(), ..Registry::default() }
    }

    /// Enters an element that a set holds.
    pub fn add(&mut self, set: SetKey, element: &Element) {
        match (set.name, element) {
            (
                SetName::ClusterIp
                | SetName::LoadBalancer
                | SetName::ExternalIp
                | SetName::ExternalIpLocal
                | SetName::NodePortSctp,
                Element::IpPort(address, protocol, port),
            ) => {
                self.services.insert((*address, *protocol, *port));
            }
            (SetName::NodePortTcp, Element::Port(port)) => {
                self.node_ports.insert((set.family, Protocol::Tcp, *port));
            }
            (SetName::NodePortUdp, Element::Port(port)) => {
                self.node_ports.insert((set.family, Protocol::Udp, *port));
            }
            _ => {}
        }
    }

    /// Whether a virtual server is one of ours.
    pub fn knows(&self, server: &VirtualKey) -> bool {
        self.services.contains(&(server.address, server.protocol, server.port))
            || (self.node_ports.contains(&(server.family(), server.protocol, server.port))
                && self.local.contains(&server.address))
    }
}

/// All items of one family that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemDump {
    /// What is ours, in no order. The link is reported in both families.
    pub ours: Vec<(ItemKey, ItemState)>,
    /// Virtual servers that are not, with their real servers: they are ours only if a Service asks for the same address and
    /// port. Those known by a firewall mark are left out.
    pub foreign: Vec<(ItemKey, ItemState)>,
}

impl ItemDump {
    /// Sorts what was found on a host with these addresses into ours and others' by what our sets tell.
    pub fn of(found: Vec<(ItemKey, ItemState)>, local: impl IntoIterator<Item = IpAddr>) -> ItemDump {
        let mut registry = Registry::new(local);
        for (key, _) in &found {
            if let ItemKey::Element(set, element) = key {
                registry.add(*set, element);
            }
        }
        let (ours, foreign) = found.into_iter().partition(|(key, _)| match key {
            ItemKey::VirtualServer(server) => registry.knows(server),
            ItemKey::RealServer(real) => registry.knows(&real.server),
            _ => true,
        });
        ItemDump { ours, foreign }
    }
}

/// Connections of one real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Established.
    pub active: u32,
    /// All others: just begun, or ending.
    pub inactive: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduler_names_are_checked() {
        assert_eq!(Scheduler::new("rr"), Some(Scheduler::ROUND_ROBIN));
        assert_eq!(Scheduler::new("mh").unwrap().as_str(), "mh");
        assert_eq!(Scheduler::new("fifteen-letters").unwrap().as_str(), "fifteen-letters");
        for name in ["", "RR", "a b", "sixteen-letters-", "x\0", "../x"] {
            assert_eq!(Scheduler::new(name), None, "{name:?}");
        }
    }

    #[test]
    fn keys_are_small() {
        assert!(size_of::<ItemKey>() <= 48, "{}", size_of::<ItemKey>());
        assert!(size_of::<ItemState>() <= 28, "{}", size_of::<ItemState>());
    }

    #[test]
    fn a_virtual_server_is_ours_if_a_set_tells_of_it() {
        let mut registry = Registry::new(["192.168.0.1", "fd00::1"].map(|text| text.parse().unwrap()));
        let set = |name| SetKey { family: IpFamily::V4, name };
        let vip: IpAddr = "10.96.0.1".parse().unwrap();
        registry.add(set(SetName::ClusterIp), &Element::IpPort(vip, Protocol::Tcp, 443));
        registry.add(set(SetName::NodePortUdp), &Element::Port(30053));
        registry.add(set(SetName::LoadBalancerFirewall), &Element::IpPort(vip, Protocol::Tcp, 80));
        let server = |address: &str, protocol, port| VirtualKey { address: address.parse().unwrap(), protocol, port };
        assert!(registry.knows(&server("10.96.0.1", Protocol::Tcp, 443)));
        assert!(registry.knows(&server("192.168.0.1", Protocol::Udp, 30053)));
        for foreign in [
            server("10.96.0.1", Protocol::Udp, 443),
            server("10.96.0.1", Protocol::Tcp, 80),
            server("10.96.0.2", Protocol::Tcp, 443),
            server("192.168.0.1", Protocol::Tcp, 30053),
            server("192.0.2.1", Protocol::Udp, 30053),
            server("fd00::1", Protocol::Udp, 30053),
        ] {
            assert!(!registry.knows(&foreign), "{foreign}");
        }
    }
}
