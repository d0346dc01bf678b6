//! Bytes captured from Linux 6.18, and laws.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::kernel::{ErrorKind, Flow, FlowEnd, FlowQuery};
use crate::net::{IpFamily, Protocol};
use crate::netlink::attribute::{NESTED, attributes, push};
use crate::netlink::ctnetlink::{self, Tuple};
use crate::netlink::link::Link;
use crate::netlink::message::{ACK, DUMP, Message, Reply, Request, messages};
use crate::netlink::route::Route;
use crate::netlink::rtnetlink::InterfaceAddress;
use crate::netlink::{NetlinkError, acct, errno, genl, link, route, rtnetlink};

/// A UDP flow from `10.0.0.9:1234` to `10.96.0.10:53` in zone 7, translated to `10.180.0.1:5353`.
const UDP_FLOW: &str = "\
    c80000000001220001000000a52e0000020000003400018014000180080001000a000009080002000a60000a1c000280050001001100\
    00000600020004d2000006000300003500003400028014000180080001000ab40001080002000a0000091c0002800500010011000000\
    0600020014e900000600030004d2000006001200000700000800030000000008080008000000000008000c0056be429108000b000000\
    000108000700000000631c001880080001000000000008000200000000000800030000000000";

/// A TCP flow from `[fd00::9]:1234` to `[fd00:96::1]:443`, translated to `[fd00:180::1]:6443`.
const TCP_FLOW: &str = "\
    200100000001220002000000a52e00000a0000004c0001802c00018014000300fd00000000000000000000000000000914000400fd00\
    00960000000000000000000000011c00028005000100060000000600020004d200000600030001bb00004c0002802c00018014000300\
    fd00018000000000000000000000000114000400fd0000000000000000000000000000091c000280050001000600000006000200192b\
    00000600030004d200000800030000000008080008000000000008000c00c56253b508000b0000000001080007000000006330000480\
    2c000180050001000300000005000200000000000500030000000000060004000a000000060005000a0000001c001880080001000000\
    000008000200000000000800030000000000";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// What a program sent and received, as `tests/fixtures/netlink` has it: lines of `>` or `<` and a datagram.
pub(super) fn captured(name: &str) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/netlink").join(name).with_extension("hex");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = |mark: &str| text.lines().filter_map(|line| Some(bytes(line.strip_prefix(mark)?))).collect();
    (lines("> "), lines("< "))
}

/// All messages of some datagrams.
pub(super) fn all_messages(datagrams: &[Vec<u8>]) -> Vec<Message<'_>> {
    datagrams.iter().flat_map(|datagram| messages(datagram)).map(Result::unwrap).collect()
}

/// A request as the kernel would see it, and its payload as a message.
pub(super) fn sent(request: &Request) -> Message<'_> {
    Message { kind: request.kind, flags: request.flags, sequence: 1, port: 0, payload: &request.payload }
}

fn flow_in(datagram: &[u8]) -> Flow {
    let message = messages(datagram).next().unwrap().unwrap();
    assert_eq!(message.reply().unwrap(), Reply::Data);
    ctnetlink::decode_flow(&message).unwrap().unwrap()
}

#[test]
fn captured_flows_are_read() {
    let udp = Flow {
        protocol: Protocol::Udp,
        original_source: "10.0.0.9:1234".parse().unwrap(),
        original_destination: "10.96.0.10:53".parse().unwrap(),
        reply_source: "10.180.0.1:5353".parse().unwrap(),
        reply_destination: "10.0.0.9:1234".parse().unwrap(),
        zone: 7,
    };
    assert_eq!(flow_in(&bytes(UDP_FLOW)), udp);
    let tcp = flow_in(&bytes(TCP_FLOW));
    assert_eq!(tcp.protocol, Protocol::Tcp);
    assert_eq!(tcp.original_source, "[fd00::9]:1234".parse().unwrap());
    assert_eq!(tcp.original_destination, "[fd00:96::1]:443".parse().unwrap());
    assert_eq!(tcp.reply_source, "[fd00:180::1]:6443".parse().unwrap());
    let query = |end, port| FlowQuery { family: IpFamily::V4, protocol: Protocol::Udp, end, address: None, port };
    assert!(query(FlowEnd::Destination, Some(53)).admits(&udp));
    assert!(!query(FlowEnd::Destination, Some(54)).admits(&udp));
    assert!(!query(FlowEnd::Source, Some(53)).admits(&udp));
    assert!(query(FlowEnd::Source, Some(udp.original_source.port())).admits(&udp));
    assert!(!query(FlowEnd::Destination, None).admits(&tcp));
}

#[test]
fn a_deletion_names_the_tuple_as_the_kernel_does() {
    let datagram = bytes(UDP_FLOW);
    let message = messages(&datagram).next().unwrap().unwrap();
    let dumped = attributes(&message.payload[4..]).find_kind(1).unwrap().unwrap();
    let request = ctnetlink::delete(&flow_in(&datagram));
    let sent = attributes(&request.payload[4..]).find_kind(1).unwrap().unwrap();
    assert_eq!(sent, dumped);
    let zone = attributes(&request.payload[4..]).find_kind(18).unwrap().unwrap();
    assert_eq!(zone.u16_be().unwrap(), 7);
}

#[test]
fn an_ipv6_address_is_left_to_user_space() {
    let query = |address: &str, end| FlowQuery {
        family: IpFamily::of(address.parse().unwrap()),
        protocol: Protocol::Udp,
        end,
        address: Some(address.parse().unwrap()),
        port: Some(53),
    };
    let tuple = |address, end| {
        let request = ctnetlink::dump_filtered(&query(address, end));
        Tuple::decode(&attributes(&request.payload[4..]).find_kind(1).unwrap().unwrap()).unwrap()
    };
    let address = Some("10.0.0.1".parse().unwrap());
    let to = tuple("10.0.0.1", FlowEnd::Destination);
    assert_eq!((to.destination, to.destination_port, to.source, to.source_port), (address, Some(53), None, None));
    let from = tuple("10.0.0.1", FlowEnd::Source);
    assert_eq!(
        (from.destination, from.destination_port, from.source, from.source_port),
        (None, None, address, Some(53))
    );
    assert_eq!(tuple("fd00::1", FlowEnd::Destination).destination, None);
    assert_eq!(tuple("fd00::1", FlowEnd::Destination).destination_port, Some(53));
    assert_eq!(tuple("fd00::1", FlowEnd::Source).source, None);
}

/// An error message: the number, the echoed header of a request of `echoed` bytes, and maybe an explanation.
fn error_message(code: i32, echoed: u32, flags: u16, explanation: Option<&str>) -> Vec<u8> {
    let mut payload = code.to_ne_bytes().to_vec();
    Request { kind: 20, flags: 0, payload: vec![0; echoed as usize - 16] }.write(0, 7, &mut payload);
    if flags & 0x100 != 0 {
        payload.truncate(4 + 16);
    }
    if let Some(text) = explanation {
        push(&mut payload, 1, format!("{text}\0").as_bytes());
    }
    let mut datagram = Vec::new();
    Request { kind: 2, flags, payload }.write(0, 7, &mut datagram);
    datagram
}

#[test]
fn refusals_carry_the_kernels_words() {
    let reply = |datagram: &[u8]| messages(datagram).next().unwrap().unwrap().reply().unwrap();
    let mut request = Vec::new();
    Request { kind: 20, flags: 0, payload: vec![0; 16] }.write(0, 7, &mut request);
    let refused = |explanation: Option<&str>, echoed: usize| {
        let (explanation, echo) = (explanation.map(str::to_owned), request[..echoed].to_vec());
        Reply::End(Err(NetlinkError::Refused { errno: errno::EINVAL, explanation, echo }))
    };
    assert_eq!(reply(&error_message(0, 32, 0, None)), Reply::End(Ok(())));
    assert_eq!(reply(&error_message(-22, 32, 0, None)), refused(None, 32));
    for (flags, echoed) in [(0x200, 32), (0x300, 16)] {
        let words = "ipv4: Invalid prefix length";
        assert_eq!(reply(&error_message(-22, 32, flags, Some(words))), refused(Some(words), echoed));
    }
    let error = NetlinkError::Refused { errno: errno::EEXIST, explanation: Some("why".to_owned()), echo: Vec::new() };
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(error.to_kernel_error("adding x").to_string(), "adding x: File exists (os error 17) (why)");
}

#[test]
fn the_own_address_of_a_point_to_point_link_is_not_the_peers() {
    let mut payload = vec![2, 32, 128, 0, 3, 0, 0, 0];
    push(&mut payload, 1, &[10, 0, 0, 2]);
    push(&mut payload, 2, &[10, 0, 0, 1]);
    let message = Message { kind: 20, flags: 2, sequence: 1, port: 0, payload: &payload };
    let found = rtnetlink::decode_address(&message).unwrap().unwrap();
    assert_eq!(found.address, "10.0.0.1".parse::<std::net::IpAddr>().unwrap());
    assert_eq!((found.present, found.interface, found.prefix), (true, 3, 32));
}

#[test]
fn counters_are_read() {
    let mut payload = vec![0; 4];
    push(&mut payload, 1, b"portolan\0");
    push(&mut payload, 2, &3_u64.to_be_bytes());
    push(&mut payload, 3, &99_u64.to_be_bytes());
    let message = Message { kind: 0x700, flags: 0, sequence: 1, port: 0, payload: &payload };
    let expected = acct::Counter { name: "portolan".to_owned(), packets: 3, bytes: 99 };
    assert_eq!(acct::decode_counter(&message).unwrap(), Some(expected));
}

#[test]
fn a_captured_family_is_read() {
    let (asked, answers) = captured("ipvs_service_add_tcp");
    assert_eq!(genl::get_family("IPVS").payload, all_messages(&asked)[0].payload);
    let family = genl::decode_family(&all_messages(&answers)[0]).unwrap().unwrap();
    assert_eq!(family, genl::Family { id: 28, name: "IPVS".to_owned(), version: 1, header_size: 0 });
}

#[test]
fn captured_interfaces_are_read() {
    let (made, _) = captured("link_add_dummy");
    let dummy = Link { name: "kube-ipvs0".to_owned(), kind: Some("dummy".to_owned()), ..Link::default() };
    assert_eq!(link::decode(&all_messages(&made)[0]).unwrap(), Some(dummy.clone()));
    assert_eq!(link::decode(&sent(&link::create("kube-ipvs0", link::DUMMY))).unwrap(), Some(dummy.clone()));
    let (_, shown) = captured("link_show");
    let found = link::decode(&all_messages(&shown)[0]).unwrap().unwrap();
    // IFF_BROADCAST | IFF_NOARP
    assert_eq!(found, Link { index: 2, flags: 0x82, ..dummy });
    assert!(!found.is_up());
    let (deleted, _) = captured("link_delete");
    assert_eq!(all_messages(&deleted).last().unwrap().payload, link::delete(2).payload);
    let (_, refused) = captured("link_missing");
    let Reply::End(Err(error)) = all_messages(&refused).last().unwrap().reply().unwrap() else { panic!() };
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn captured_addresses_are_read() {
    let mut v4 = InterfaceAddress::host(2, "10.96.0.1".parse().unwrap());
    v4.flags = rtnetlink::NO_PREFIX_ROUTE;
    let mut v6 = InterfaceAddress::host(2, "fd00:96::1".parse().unwrap());
    v6.flags = rtnetlink::NO_PREFIX_ROUTE | rtnetlink::NO_DUPLICATE_DETECTION;
    v6.preferred = 0;
    let sorted = |payload: &[u8]| {
        let mut list: Vec<_> = attributes(&payload[8..]).map(|one| one.unwrap().payload.to_vec()).collect();
        list.sort();
        (payload[..8].to_vec(), list)
    };
    for (name, address) in [("address_add_ipv4", v4), ("address_add_ipv6", v6)] {
        let (made, _) = captured(name);
        assert_eq!(sorted(all_messages(&made)[0].payload), sorted(&rtnetlink::add_address(&address).payload), "{name}");
    }
    let (_, shown) = captured("address_show");
    let read = |message: &Message<'_>| rtnetlink::decode_address(message).unwrap();
    let found: Vec<_> = all_messages(&shown).iter().filter_map(read).filter(|found| found.interface == 2).collect();
    // The kernel adds IFA_F_PERMANENT, and IFA_F_DEPRECATED to what is never preferred.
    v4.flags |= 0x80;
    v6.flags |= 0xa0;
    assert_eq!(found[..2], [v4, v6]);
}

#[test]
fn captured_routes_are_read() {
    let v4 = Route::local("10.96.0.0/12".parse().unwrap(), 2, Some("10.9.0.1".parse().unwrap()), 99);
    let v6 = Route::local("fd00:96::/112".parse().unwrap(), 2, Some("fd09::1".parse().unwrap()), 99);
    for (made, shown, route) in
        [("route_add_local", "route_show_local", v4), ("route_add_local6", "route_show_local6", v6)]
    {
        let (made, _) = captured(made);
        assert_eq!(route::decode(&all_messages(&made)[0]).unwrap(), Some(route));
        let (_, shown) = captured(shown);
        let routes: Vec<_> =
            all_messages(&shown).iter().filter_map(|message| route::decode(message).unwrap()).collect();
        assert!(routes.contains(&route), "{routes:?}");
    }
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    let port = any::<Option<u16>>();
    (any::<Option<std::net::IpAddr>>(), any::<Option<std::net::IpAddr>>(), any::<Option<u8>>(), port.clone(), port)
        .prop_map(|(source, destination, protocol, source_port, destination_port)| Tuple {
            source,
            destination,
            protocol,
            source_port,
            destination_port,
        })
}

proptest! {
    #[test]
    fn attributes_survive_being_written_and_read(list in vec((any::<u16>(), vec(any::<u8>(), 0..40)), 0..8)) {
        let mut out = Vec::new();
        for (kind, payload) in &list {
            push(&mut out, *kind, payload);
        }
        prop_assert_eq!(out.len() % 4, 0);
        let read: Vec<_> = attributes(&out).flatten().map(|one| (one.raw_kind, one.payload.to_vec())).collect();
        prop_assert_eq!(read, list);
    }

    #[test]
    fn messages_survive_being_written_and_read(
        list in vec((16_u16.., any::<u16>(), vec(any::<u8>(), 0..40)), 0..8), first in any::<u32>()
    ) {
        let mut out = Vec::new();
        for (at, (kind, flags, payload)) in (0..).zip(&list) {
            let request = Request { kind: *kind, flags: *flags, payload: payload.clone() };
            request.write(ACK | DUMP, first.wrapping_add(at), &mut out);
        }
        let read: Vec<_> = messages(&out).map(Result::unwrap).collect();
        prop_assert_eq!(read.len(), list.len());
        for ((at, message), (kind, flags, payload)) in (0..).zip(read).zip(&list) {
            prop_assert_eq!((message.kind, message.flags), (*kind, flags | 1 | ACK | DUMP));
            prop_assert_eq!((message.sequence, message.payload), (first.wrapping_add(at), &payload[..]));
        }
    }

    #[test]
    fn tuples_survive_being_written_and_read(tuple in any_tuple()) {
        let mut out = Vec::new();
        tuple.encode(1, &mut out);
        let attribute = attributes(&out).next().unwrap().unwrap();
        prop_assert_eq!(attribute.raw_kind, 1 | NESTED);
        prop_assert_eq!(Tuple::decode(&attribute).unwrap(), tuple);
    }

    #[test]
    fn addresses_links_and_routes_survive_being_written_and_read(
        address: std::net::IpAddr, length: u8, numbers: [u32; 3], bytes: [u8; 3], source: bool,
    ) {
        let mut made = InterfaceAddress::host(numbers[0], address);
        made.flags = numbers[1];
        made.preferred = numbers[2];
        let deleted = InterfaceAddress { present: false, ..made };
        prop_assert_eq!(rtnetlink::decode_address(&sent(&rtnetlink::add_address(&made))).unwrap(), Some(made));
        prop_assert_eq!(rtnetlink::decode_address(&sent(&rtnetlink::delete_address(&made))).unwrap(), Some(deleted));

        let prefix = length % (IpFamily::of(address).host_prefix() + 1);
        let net = ipnet::IpNet::new(address, prefix).unwrap();
        let local = Route::local(net, numbers[0], source.then_some(address), bytes[0]);
        let other = Route { kind: bytes[1], scope: bytes[2], table: numbers[1], interface: None, ..local };
        for route in [local, other] {
            for request in [route::add(&route), route::replace(&route), route::delete(&route)] {
                prop_assert_eq!(route::decode(&sent(&request)).unwrap(), Some(route));
            }
        }

        let up = link::decode(&sent(&link::set_up(numbers[0], true))).unwrap().unwrap();
        prop_assert_eq!((up.index, up.is_up()), (numbers[0], true));
    }

    #[test]
    fn no_datagram_makes_a_decoder_panic(garbage in vec(any::<u8>(), 0..200), at in 0..288_usize, value: u8) {
        let mut spoiled = bytes(TCP_FLOW);
        spoiled[at] = value;
        for datagram in [garbage, spoiled] {
            for message in messages(&datagram).flatten() {
                let _ = (message.reply(), ctnetlink::decode_flow(&message));
                let _ = (rtnetlink::decode_address(&message), acct::decode_counter(&message));
                let _ = (link::decode(&message), route::decode(&message), genl::decode_family(&message));
            }
        }
    }
}
