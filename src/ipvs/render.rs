//! Fragments as input for the tools that would configure the same: `ipset`, `iptables-restore`, `ipvsadm` and `ip`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;

use ipnet::IpNet;

use crate::backend::Fragment;
use crate::iptables::restore_text;
use crate::kernel::item::DUMMY_LINK;
use crate::kernel::{ItemKey, ItemState, SetKey, SetKind, VirtualKey, VirtualServer};
use crate::net::{IpFamily, Protocol};

/// Everything of one family, in the order in which it would be loaded on an untouched host: sets, rules, virtual servers,
/// addresses and routes. Each part follows a line that names its program.
pub fn render_text<'a>(family: IpFamily, fragments: impl IntoIterator<Item = &'a Fragment>) -> String {
    let fragments: Vec<&Fragment> = fragments.into_iter().collect();
    let own = fragments.iter().flat_map(|fragment| &fragment.items).filter(|(key, _)| key.family() == Some(family));
    // Two Services may ask for the same; of two states the first one counts.
    let mut items = BTreeMap::new();
    for (key, state) in own {
        items.entry(place(key)).or_insert((key, state));
    }
    let mut parts = [String::new(), String::new(), String::new()];
    for ((part, ..), (key, state)) in items {
        write_item(key, state, &mut parts[part as usize]);
    }
    let [sets, servers, addresses] = parts;
    let restore = match family {
        IpFamily::V4 => "iptables-restore",
        IpFamily::V6 => "ip6tables-restore",
    };
    let rules = restore_text(family, fragments);
    format!(
        "# {family}: ipset restore\n{sets}# {family}: {restore} --noflush\n{rules}# {family}: ipvsadm -R\n{servers}\
         # {family}: addresses\n{addresses}"
    )
}

/// The parts of the text that consist of items.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Sets,
    Servers,
    Addresses,
}

/// Where an item is written: all sets before their elements, but a virtual server right before its real servers.
fn place(key: &ItemKey) -> (Part, Option<VirtualKey>, ItemKey) {
    match key {
        ItemKey::Set(_) | ItemKey::Element(..) => (Part::Sets, None, *key),
        ItemKey::VirtualServer(server) => (Part::Servers, Some(*server), *key),
        ItemKey::RealServer(real) => (Part::Servers, Some(real.server), *key),
        ItemKey::Address(_) | ItemKey::Route(_) | ItemKey::Link => (Part::Addresses, None, *key),
    }
}

fn write_item(key: &ItemKey, state: &ItemState, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = match (key, state) {
        (ItemKey::Set(set), ItemState::Capacity(capacity)) => write_set(set, *capacity, out),
        (ItemKey::Element(set, element), _) => writeln!(out, "add {set} {element}"),
        (ItemKey::VirtualServer(server), ItemState::Server(state)) => write_server(server, state, out),
        (ItemKey::RealServer(real), ItemState::Weight(weight)) => {
            let to = SocketAddr::new(real.address, real.port);
            writeln!(out, "-a {} -r {to} -m -w {weight}", option(&real.server))
        }
        (ItemKey::Address(address), ItemState::Address { deprecated }) => {
            let lifetime = if *deprecated { " preferred_lft 0" } else { "" };
            writeln!(out, "ip addr add {} dev {DUMMY_LINK}{lifetime}", IpNet::from(*address))
        }
        (ItemKey::Route(net), ItemState::Source(source)) => {
            let source = source.map(|source| format!(" src {source}")).unwrap_or_default();
            writeln!(out, "ip route add local {net} dev {DUMMY_LINK}{source}")
        }
        (ItemKey::Link, _) => writeln!(out, "ip link add {DUMMY_LINK} type dummy"),
        // Keys and states of no such pair are not written by anybody.
        _ => Ok(()),
    };
}

fn write_set(set: &SetKey, capacity: u32, out: &mut String) -> std::fmt::Result {
    let inet = match set.family {
        IpFamily::V4 => "inet",
        IpFamily::V6 => "inet6",
    };
    let kind = match set.name.kind() {
        SetKind::Ip => "hash:ip",
        SetKind::IpPort => "hash:ip,port",
        SetKind::IpPortIp => "hash:ip,port,ip",
        SetKind::IpPortNet => "hash:ip,port,net",
        SetKind::Port => return writeln!(out, "create {set} bitmap:port range 0-65535"),
    };
    writeln!(out, "create {set} {kind} family {inet} hashsize 1024 maxelem {capacity}")
}

fn write_server(server: &VirtualKey, state: &VirtualServer, out: &mut String) -> std::fmt::Result {
    write!(out, "-A {} -s {}", option(server), state.scheduler.as_str())?;
    if state.flags & VirtualServer::SCHEDULER_2 != 0 {
        out.write_str(" -b flag-2")?;
    }
    if state.flags & VirtualServer::PERSISTENT != 0 {
        write!(out, " -p {}", state.persistence_seconds)?;
    }
    out.write_str("\n")
}

/// The virtual server as the tool names it.
fn option(server: &VirtualKey) -> String {
    let protocol = match server.protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
        Protocol::Sctp => "--sctp-service",
    };
    format!("{protocol} {}", SocketAddr::new(server.address, server.port))
}
