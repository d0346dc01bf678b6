//! Bytes that the `ipset` tool exchanged with Linux 6.18, and laws.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;

use super::error::{Reason, Refusal};
use super::*;
use crate::kernel::ErrorKind;
use crate::netlink::NetlinkError;
use crate::netlink::attribute::{Attribute, attributes};
use crate::netlink::message::{Reply, messages};
use crate::netlink::tests::{all_messages, captured, sent};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ip_port(text: &str, protocol: u8, port: u16) -> Element {
    Element::IpPort { ip: ip(text), protocol, port }
}

fn ip_port_net(net: &str, exception: bool) -> Element {
    Element::IpPortNet { ip: ip("fd00::1"), protocol: 132, port: 80, net: net.parse().unwrap(), exception }
}

fn ip_port_ip() -> Element {
    Element::IpPortIp { ip: ip("10.0.0.1"), protocol: 6, port: 80, second: ip("10.0.0.1") }
}

/// The last request of a capture, in the protocol version that we speak (the tool speaks 7).
fn last_request(name: &str) -> (u16, u16, Vec<u8>) {
    let (asked, _) = captured(name);
    let message = *all_messages(&asked).last().unwrap();
    let mut payload = message.payload.to_vec();
    assert_eq!(payload[4..9], [5, 0, 1, 0, 7], "the version comes first");
    payload[8] = VERSION;
    (message.kind, message.flags, payload)
}

fn refusal(name: &str) -> Refusal {
    let (_, answers) = captured(name);
    match all_messages(&answers).last().unwrap().reply().unwrap() {
        Reply::End(Err(error)) => Refusal::of(&error).unwrap(),
        other => panic!("{name}: {other:?}"),
    }
}

fn listed(names: &[&str]) -> Vec<Listed> {
    let mut listing = Listing::default();
    for name in names {
        for message in all_messages(&captured(name).1) {
            listing.absorb(&message).unwrap();
        }
    }
    listing.sets
}

/// The elements of a request, with their lines.
fn elements_of(request: &Request) -> Vec<(u32, Element)> {
    let list = attributes(&request.payload[4..]).find_kind(ELEMENTS).unwrap().unwrap();
    let one = |data: Attribute<'_>| {
        let line = data.nested().find_kind(LINE).unwrap().unwrap().u32_be().unwrap();
        (line, Element::decode(data.nested()).unwrap())
    };
    list.nested().map(|data| one(data.unwrap())).collect()
}

#[test]
fn sets_are_created_as_the_tool_does() {
    let mut hash = Set::hash("a", SetType::HashIp, IpFamily::V4, 65536);
    let mut counting = Set::hash("b6", SetType::HashIpPort, IpFamily::V6, 65536);
    let mut ports = Set::ports("c");
    (hash.revision, counting.revision, ports.revision) = (6, 7, 3);
    (counting.timeout, counting.flags) = (Some(60), Set::COUNTERS);
    // Without a size the kernel chooses both.
    (counting.hash_size, counting.max_elements) = (None, None);
    for (name, set) in
        [("ipset_create_hash_ip", hash), ("ipset_create_ip_port", counting), ("ipset_create_bitmap", ports)]
    {
        let (kind, flags, payload) = last_request(name);
        let request = create(&set, true);
        assert_eq!((request.kind, request.flags | 5), (kind, flags), "{name}");
        assert_eq!(data_of(&request.payload), data_of(&payload), "{name}");
        assert_eq!(around_data(&request.payload), around_data(&payload), "{name}");
    }
}

/// The attributes of the nested data, sorted.
fn data_of(payload: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let data = attributes(&payload[4..]).find_kind(DATA).unwrap().unwrap();
    let mut all: Vec<_> = data.nested().flatten().map(|one| (one.raw_kind, one.payload.to_vec())).collect();
    all.sort();
    all
}

fn around_data(payload: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let all = attributes(&payload[4..]).map(Result::unwrap).filter(|one| one.kind() != DATA);
    all.map(|one| (one.raw_kind, one.payload.to_vec())).collect()
}

#[test]
fn elements_are_written_as_the_tool_does() {
    for (name, element) in [
        ("ipset_add_ip", Element::Ip(ip("10.0.0.1"))),
        ("ipset_add_ip_port", ip_port("fd00::1", 17, 53)),
        ("ipset_add_ip_port_ip", ip_port_ip()),
        ("ipset_add_ip_port_net", ip_port_net("fd01::/16", false)),
        ("ipset_add_port", Element::Port(30000)),
        ("ipset_del_ip", Element::Ip(ip("10.0.0.1"))),
        ("ipset_test", ip_port("10.0.0.3", 6, 3)),
    ] {
        let (_, _, payload) = last_request(name);
        let request = test("x", &element);
        let mut theirs = data_of(&payload);
        theirs.retain(|(kind, _)| *kind != LINE | NET_BYTE_ORDER);
        // Clearing the bits of a host address as the tool does changes nothing.
        assert_eq!(data_of(&request.payload), theirs, "{name}");
    }
}

#[test]
fn many_elements_are_written_as_the_tool_does() {
    let elements = [ip_port("10.0.0.1", 6, 1), ip_port("10.0.0.2", 6, 2), ip_port("10.0.0.3", 6, 3)];
    let (kind, flags, payload) = last_request("ipset_restore");
    let [request] = &add("f", &elements, true)[..] else { panic!("more than one message") };
    assert_eq!((request.kind, request.flags | 5), (kind, flags));
    let without_line = |payload: &[u8]| {
        let all = attributes(&payload[4..]).map(Result::unwrap).filter(|one| one.kind() != LINE);
        all.map(|one| (one.raw_kind, one.payload.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(without_line(&request.payload), without_line(&payload));
}

#[test]
fn other_requests_are_written_as_the_tool_does() {
    let theirs = |name| {
        let (kind, _, payload) = last_request(name);
        (kind, payload)
    };
    let ours = |request: Request| (request.kind, request.payload);
    assert_eq!(ours(swap("a", "g")), theirs("ipset_swap"));
    assert_eq!(ours(destroy("g")), theirs("ipset_destroy"));
    // The tool saves, which the kernel carries out like a list.
    assert_eq!(list("f").payload, theirs("ipset_save_f").1);
}

#[test]
fn captured_versions_are_read() {
    let (asked, answers) = captured("ipset_create_hash_ip");
    let asked = all_messages(&asked);
    let versions: Vec<_> =
        all_messages(&answers).iter().filter_map(|message| decode_versions(message).unwrap()).collect();
    assert_eq!(versions, [Versions { lowest: 6, highest: 7 }, Versions { lowest: 0, highest: 6 }]);
    assert_eq!(query_protocol().kind, asked[0].kind);
    let request = query_type(&SetType::HashIp, Some(IpFamily::V4));
    assert_eq!((request.kind, &request.payload[9..]), (asked[1].kind, &asked[1].payload[9..]));
}

#[test]
fn captured_sets_are_read() {
    let sets = listed(&["ipset_save_a", "ipset_save_b6", "ipset_save_c", "ipset_save_d", "ipset_save_e6"]);
    let elements: Vec<_> = sets.iter().map(|set| set.elements.clone()).collect();
    assert_eq!(elements[0], []);
    assert_eq!(elements[1], [ip_port("fd00::1", 17, 53)]);
    assert_eq!(elements[2], [Element::Port(30000)]);
    assert_eq!(elements[3], [ip_port_ip()]);
    assert_eq!(elements[4], [ip_port_net("fd01:2::/32", true), ip_port_net("fd01::/16", false)]);
    let mut expected = [
        Set::hash("a", SetType::HashIp, IpFamily::V4, 65536),
        Set::hash("b6", SetType::HashIpPort, IpFamily::V6, 65536),
        Set::ports("c"),
        Set::hash("d", SetType::HashIpPortIp, IpFamily::V4, 65536),
        Set::hash("e6", SetType::HashIpPortNet, IpFamily::V6, 65536),
    ];
    (expected[1].timeout, expected[1].flags) = (Some(60), Set::COUNTERS);
    for (found, expected) in sets.iter().zip(&expected) {
        assert!(found.set.is_like(expected), "{found:?}");
        assert_eq!((&found.set.name, found.references), (&expected.name, 0));
        assert_eq!(found.size, Some(u32::try_from(found.elements.len()).unwrap()));
    }
    assert!(!sets[0].set.is_like(&expected[1]) && !sets[0].set.is_like(&expected[3]));
    let headers = listed(&["ipset_headers"]);
    assert_eq!(headers.len(), 6);
    assert!(headers.iter().all(|set| set.elements.is_empty()));
    assert_eq!(headers[4].set, sets[4].set);
    assert_eq!(headers[4].size, Some(2));
}

#[test]
fn captured_refusals_say_why_and_which_element() {
    let plain = |reason| Refusal { reason, line: None };
    assert_eq!(refusal("ipset_create_exists"), plain(Reason::SetExists));
    // The tool numbers a single element 0.
    assert_eq!(refusal("ipset_add_exists").reason, Reason::Exists);
    assert_eq!(refusal("ipset_del_missing").reason, Reason::Missing);
    assert_eq!(refusal("ipset_restore_exists"), Refusal { reason: Reason::Exists, line: Some(2) });
    let text = refusal("ipset_restore_exists").to_kernel_error("adding to f").to_string();
    assert_eq!(text, "adding to f: the element is in the set already (element 2)");
}

#[test]
fn numbers_mean_what_the_request_makes_of_them() {
    let refused = |errno, request: &Request| {
        let mut echo = Vec::new();
        request.write(0, 1, &mut echo);
        Refusal::of(&NetlinkError::Refused { errno, explanation: None, echo }).unwrap()
    };
    let hash = &add("s", &[Element::Ip(ip("10.0.0.1"))], true)[0];
    let bitmap = &add("s", &[Element::Port(1)], true)[0];
    let removal = &delete("s", &[Element::Port(1)], true)[0];
    assert_eq!(refused(4352, hash).reason, Reason::Full);
    assert_eq!(refused(4352, bitmap).reason, Reason::OutOfRange);
    assert_eq!(refused(4352, &test("s", &Element::Port(1))).reason, Reason::OutOfRange);
    assert_eq!(refused(4103, bitmap).reason, Reason::Exists);
    assert_eq!(refused(4103, removal).reason, Reason::Missing);
    assert_eq!(refused(4103, hash).line, None, "the kernel blamed none of the elements");
    assert_eq!(refused(4200, hash).reason, Reason::Other(4200));
    let kind = |errno| refused(errno, &destroy("s")).to_kernel_error("x").kind;
    assert_eq!((kind(4100), kind(2), kind(1)), (ErrorKind::Busy, ErrorKind::NotFound, ErrorKind::Denied));
    assert_eq!(Refusal::of(&NetlinkError::TimedOut), None);
}

#[test]
fn no_message_is_longer_than_its_length_field() {
    let element = |n: u16| Element::IpPortNet {
        ip: ip("fd00::1"),
        protocol: 6,
        port: n,
        net: "fd00::/64".parse().unwrap(),
        exception: true,
    };
    let elements: Vec<Element> = (0..5000).map(element).collect();
    let requests = add("KUBE-6-LOAD-BALANCER-SOURCE-CID", &elements, false);
    assert_eq!(requests.len(), 8, "5,000 elements of 92 bytes, 667 to a message");
    let all: Vec<_> = requests.iter().flat_map(elements_of).collect();
    assert_eq!(all.len(), 5000);
    for (at, (line, element)) in all.iter().enumerate() {
        assert_eq!((*line as usize, element), (at + 1, &elements[at]));
    }
    assert!(add("s", &[], false).is_empty());
}

#[test]
fn elements_read_as_the_tool_writes_them() {
    let mut texts = [
        "10.0.0.1,tcp:80,10.0.0.1",
        "fd00::1,udp:53",
        "fd00::1,sctp:80,fd01:2::/32 nomatch",
        "fd00::1,sctp:80,fd01::1",
        "30000",
    ]
    .into_iter();
    for element in [
        ip_port_ip(),
        ip_port("fd00::1", 17, 53),
        ip_port_net("fd01:2::/32", true),
        ip_port_net("fd01::1/128", false),
        Element::Port(30000),
    ] {
        assert_eq!(Some(element.to_string().as_str()), texts.next());
    }
}

fn element() -> impl Strategy<Value = Element> {
    let v4 = (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    let v6 = (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    (prop_oneof![v4, v6], any::<(u8, u16, u8, bool)>(), 0..5_u8).prop_map(|((ip, second), more, which)| {
        let (protocol, port, prefix, exception) = more;
        let longest = if ip.is_ipv4() { 33 } else { 129 };
        let net = IpNet::new(second, prefix % longest).unwrap().trunc();
        match which {
            0 => Element::Ip(ip),
            1 => Element::IpPort { ip, protocol, port },
            2 => Element::IpPortIp { ip, protocol, port, second },
            3 => Element::IpPortNet { ip, protocol, port, net, exception },
            _ => Element::Port(port),
        }
    })
}

prop_compose! {
    fn set()(
        name in "[A-Z-]{1,31}", kind in 0..6_usize, other in "[a-z]{1,8}", revision: u8, v6: Option<bool>,
        numbers: [Option<u32>; 3], ports: (u16, u16), flags: u32,
    ) -> Set {
        let kind = SetType::USED.get(kind).cloned().unwrap_or(SetType::Other(other));
        let ports = (kind == SetType::BitmapPort).then_some(ports);
        let family = v6.map(|v6| if v6 { IpFamily::V6 } else { IpFamily::V4 });
        let [hash_size, max_elements, timeout] = numbers;
        Set { name, kind, revision, family, hash_size, max_elements, ports, timeout, flags }
    }
}

proptest! {
    #[test]
    fn sets_survive_being_written_and_read(set in set()) {
        let mut request = create(&set, true);
        // The kernel's list has the same attributes.
        request.kind = LIST;
        let mut listing = Listing::default();
        listing.absorb(&sent(&request)).unwrap();
        prop_assert_eq!(&listing.sets[0].set, &set);
    }

    #[test]
    fn elements_survive_being_written_and_read(elements in vec(element(), 1..50)) {
        let requests = add("s", &elements, true);
        let read: Vec<Element> = requests.iter().flat_map(elements_of).map(|(_, element)| element).collect();
        prop_assert_eq!(read, elements);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        garbage in vec(any::<u8>(), 0..120), kind in 0x600..0x610_u16, at in 0..4000_usize, value: u8,
    ) {
        let mut spoiled = captured("ipset_headers").1.concat();
        spoiled.extend(captured("ipset_save_e6").1.concat());
        spoiled.extend(captured("ipset_restore_exists").1.concat());
        let at = at % spoiled.len();
        spoiled[at] = value;
        let mut made = Vec::new();
        Request { kind, flags: 0, payload: garbage }.write(0, 1, &mut made);
        for datagram in [spoiled, made] {
            for message in messages(&datagram).flatten() {
                let _ = (Listing::default().absorb(&message), decode_versions(&message));
                if let Ok(Reply::End(Err(error))) = message.reply() {
                    let _ = Refusal::of(&error);
                }
            }
        }
    }
}
