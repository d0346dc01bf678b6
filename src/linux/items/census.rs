//! The census of the real kernel: one file, one list of sets without their elements, one list of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::{interface, servers, sets};
use crate::kernel::census::Census;
use crate::kernel::item::Scheduler;
use crate::kernel::{ItemKey, ItemState, RealKey, VirtualKey, VirtualServer};
use crate::net::{IpFamily, PerFamily, Protocol};

/// Where the kernel lists virtual servers and real servers of both families, as text.
const SERVERS: &str = "/proc/thread-self/net/ip_vs";

/// What the kernel holds; `None` if a part of it can't be had.
pub(in crate::linux) fn census(families: PerFamily<bool>, timeout: Duration) -> Option<Census> {
    let mut census = Census::default();
    add_servers(&std::fs::read_to_string(SERVERS).ok()?, families, &mut census)?;
    for (set, count) in sets::sizes(timeout)?.into_iter().filter(|(set, _)| families[set.family]) {
        census.add_elements(set, count);
    }
    for family in IpFamily::ALL.into_iter().filter(|family| families[*family]) {
        for (key, state) in interface::read(family, true, timeout).ok()? {
            census.add(&key, &state);
        }
    }
    Some(census)
}

/// Adds what the lines tell (`ip_vs_info_seq_show`); `None` if one makes no sense.
fn add_servers(text: &str, families: PerFamily<bool>, census: &mut Census) -> Option<()> {
    let mut current: Option<VirtualKey> = None;
    // Three lines of headings.
    for line in text.lines().skip(3) {
        let mut words = line.split_whitespace();
        match words.next()? {
            "->" => {
                let Some(server) = current else { continue };
                let (address, port) = socket(words.next()?)?;
                let forwarding = words.next()?;
                let weight = words.next()?.parse().ok()?;
                let translated = matches!(forwarding, "Masq" | "Local");
                let weight = if translated { weight } else { servers::FOREIGN_WEIGHT };
                census.add(&ItemKey::RealServer(RealKey { server, address, port }), &ItemState::Weight(weight));
            }
            name => {
                current = None;
                let Some(protocol) = protocol(name) else { continue };
                let (address, port) = socket(words.next()?)?;
                let scheduler = Scheduler::new(words.next()?)?;
                let mut state = VirtualServer { scheduler, flags: 0, persistence_seconds: 0 };
                if words.any(|word| word == "persistent") {
                    state.flags = VirtualServer::PERSISTENT;
                    state.persistence_seconds = words.next()?.parse().ok()?;
                }
                // Services of all ports are nobody's that we know: see `servers::read`.
                if port != 0 && families[IpFamily::of(address)] {
                    let server = VirtualKey { address, protocol, port };
                    current = Some(server);
                    census.add(&ItemKey::VirtualServer(server), &ItemState::Server(state));
                }
            }
        }
    }
    Some(())
}

/// Services of firewall marks (`FWM`) have none.
fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// `AC1E000A:0050`, or `[fd00:...:0010]:0050`.
fn socket(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    let address = match address.strip_prefix('[') {
        Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?)),
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

    const TEXT: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  [fd00:0172:0030:0000:0000:0000:0000:0010]:0050 rr persistent 10800 128
  -> [fd00:0010:0244:0000:0000:0000:0000:0013]:1F90      Masq    1      0          0
FWM  00000007 rr persistent 300 FFFFFFFF
  -> 0AF4000B:1F90      Masq    1      0          0
UDP  AC1E000A:0035 mh
  -> 0AF4000D:1F90      Local   0      7          0
  -> 0AF4000C:1F90      Route   1      0          9
";

    #[test]
    fn the_lines_are_read_as_the_items_that_they_tell_of() {
        let mut found = Census::default();
        add_servers(TEXT, BOTH, &mut found).unwrap();
        let server = |address: &str, protocol, port| VirtualKey { address: address.parse().unwrap(), protocol, port };
        let state = |scheduler: &str, flags, persistence_seconds| {
            let scheduler = Scheduler::new(scheduler).unwrap();
            ItemState::Server(VirtualServer { scheduler, flags, persistence_seconds })
        };
        let real = |server, address: &str| {
            ItemKey::RealServer(RealKey { server, address: address.parse().unwrap(), port: 8080 })
        };
        let six = server("fd00:172:30::10", Protocol::Tcp, 80);
        let four = server("172.30.0.10", Protocol::Udp, 53);
        let mut wanted = Census::default();
        for (key, state) in [
            (ItemKey::VirtualServer(six), state("rr", VirtualServer::PERSISTENT, 10800)),
            (real(six, "fd00:10:244::13"), ItemState::Weight(1)),
            (ItemKey::VirtualServer(four), state("mh", VirtualServer::SCHEDULER_2, 0)),
            (real(four, "10.244.0.13"), ItemState::Weight(0)),
            (real(four, "10.244.0.12"), ItemState::Weight(servers::FOREIGN_WEIGHT)),
        ] {
            wanted.add(&key, &state);
        }
        assert_eq!(found, wanted);
    }

    #[test]
    fn lines_that_make_no_sense_are_no_census() {
        for line in ["TCP", "TCP  nonsense rr", "TCP  AC1E000A:0035 (none)", "TCP  AC1E000A:0035 rr persistent"] {
            let text = format!("a\nb\nc\n{line}\n");
            assert_eq!(add_servers(&text, BOTH, &mut Census::default()), None, "{line}");
        }
        let broken = format!("{TEXT}  -> 0AF4000D:1F90      Masq    many\n");
        assert_eq!(add_servers(&broken, BOTH, &mut Census::default()), None);
    }
}
