//! Bytes that `ipvsadm` exchanged with Linux 6.1, and laws.

use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::kernel::ErrorKind;
use crate::netlink::NetlinkError;
use crate::netlink::attribute::attributes;
use crate::netlink::message::{Reply, messages};
use crate::netlink::tests::{all_messages, captured, sent};

/// As the family was numbered in the captures.
const IPVS: Ipvs = Ipvs { id: 28 };

fn address_service(protocol: u16, address: &str, scheduler: &str) -> Service {
    Service::new(ServiceKey::address(protocol, address.parse().unwrap()), scheduler)
}

fn persistent(mut service: Service, more: u32, timeout: u32) -> Service {
    service.flags = Flags::exactly(Flags::PERSISTENT | more);
    service.timeout = timeout;
    service
}

/// The services of the captures, as they were added.
fn services() -> Vec<(&'static str, Service)> {
    let mh = address_service(6, "[fd00:96::1]:443", "mh");
    let mut udp = address_service(17, "10.96.0.10:53", "sh");
    udp.flags = Flags::exactly(Flags::ONE_PACKET);
    let mut mark = persistent(Service::new(ServiceKey::mark(IpFamily::V4, 7), "wrr"), 0, 300);
    mark.netmask = 0xffff_ff00;
    let mut sip = persistent(address_service(17, "10.96.0.11:5060", "rr"), 0, 60);
    sip.persistence_engine = Some("sip".to_owned());
    vec![
        ("ipvs_service_add_tcp", address_service(6, "10.96.0.1:443", "rr")),
        ("ipvs_service_add_mh", persistent(mh, Flags::SCHEDULER_1 | Flags::SCHEDULER_2, 10800)),
        ("ipvs_service_add_udp_ops", udp),
        ("ipvs_service_add_fwmark", mark),
        ("ipvs_service_add_fwmark6", Service::new(ServiceKey::mark(IpFamily::V6, 8), "lc")),
        ("ipvs_service_add_sip", sip),
    ]
}

fn tunnel() -> Destination {
    let mut destination = Destination::new("10.0.0.3:0".parse().unwrap(), 5);
    destination.forwarding = Forwarding::Tunnel;
    destination.tunnel = Some(Tunnel { kind: 1, port: 6080, flags: 0 });
    destination
}

/// The last request of a capture, which is the one that the tool was told to make.
fn last_request(name: &str) -> (u8, Vec<u8>) {
    let (asked, _) = captured(name);
    let payload = all_messages(&asked).last().unwrap().payload;
    (payload[0], payload.to_vec())
}

fn refusal(name: &str) -> NetlinkError {
    let (_, answers) = captured(name);
    match all_messages(&answers).last().unwrap().reply().unwrap() {
        Reply::End(Err(error)) => error,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn services_are_written_as_the_tool_does() {
    for (name, service) in services() {
        assert_eq!(IPVS.new_service(&service).payload, last_request(name).1, "{name}");
    }
    let mut edited = address_service(6, "10.96.0.1:443", "wlc");
    assert_eq!(IPVS.set_service(&edited).payload, last_request("ipvs_service_edit").1);
    edited.key = ServiceKey::address(6, "10.96.0.2:443".parse().unwrap());
    assert_eq!(IPVS.set_service(&edited).payload, last_request("ipvs_service_edit_missing").1);
}

#[test]
fn deletions_name_what_the_tools_name() {
    let key = ServiceKey::address(6, "10.96.0.1:443".parse().unwrap());
    let (command, payload) = last_request("ipvs_service_delete");
    let request = IPVS.delete_service(&key);
    assert_eq!(request.payload[0], command);
    // The tool sends the whole service, of which the kernel takes the key.
    assert_eq!(decoded_service(&payload).key, decoded_service(&request.payload).key);

    let destination = DestinationKey("10.0.0.1:6443".parse().unwrap());
    let (command, payload) = last_request("ipvs_destination_delete");
    let request = IPVS.delete_destination(&key, &destination);
    assert_eq!(request.payload[0], command);
    assert_eq!(decoded_destination(&payload).key, destination);
    assert_eq!(decoded_destination(&request.payload).key, destination);
    assert_eq!(decoded_service(&request.payload).key, key);
}

fn decoded_service(payload: &[u8]) -> Service {
    let attribute = attributes(&payload[4..]).find_kind(SERVICE).unwrap().unwrap();
    Service::decode(attribute.nested()).unwrap()
}

fn decoded_destination(payload: &[u8]) -> Destination {
    let attribute = attributes(&payload[4..]).find_kind(DESTINATION).unwrap().unwrap();
    Destination::decode(attribute.nested(), IpFamily::V4).unwrap()
}

#[test]
fn destinations_are_written_as_the_tool_does() {
    let mut edited = Destination::new("10.0.0.1:6443".parse().unwrap(), 0);
    (edited.upper_threshold, edited.lower_threshold) = (10, 5);
    for (name, service, destination) in [
        ("ipvs_destination_add", 0, Destination::new("10.0.0.1:6443".parse().unwrap(), 1)),
        ("ipvs_destination_add6", 1, Destination::new("[fd00::1]:6443".parse().unwrap(), 0)),
        ("ipvs_destination_add_tunnel", 3, tunnel()),
        ("ipvs_destination_edit", 0, edited),
    ] {
        let (command, payload) = last_request(name);
        let key = services()[service].1.key;
        let request = match command {
            SET_DESTINATION => IPVS.set_destination(&key, &destination),
            _ => IPVS.new_destination(&key, &destination),
        };
        let mut theirs = decoded_destination(&payload);
        // The tool names a tunnel of no kind where there is none.
        if destination.tunnel.is_none() {
            theirs.tunnel = None;
        }
        assert_eq!((theirs, decoded_service(&payload).key), (destination, key), "{name}");
        assert_eq!(decoded_destination(&request.payload).key, decoded_destination(&payload).key, "{name}");
        assert_eq!(request.payload[0], command, "{name}");
    }
}

#[test]
fn captured_services_are_read() {
    let (_, answers) = captured("ipvs_save");
    let found: Vec<Service> =
        all_messages(&answers).iter().filter_map(|message| IPVS.decode_service(message).unwrap()).collect();
    assert_eq!(found.len(), 6);
    for (name, mut service) in services() {
        if name == "ipvs_service_add_tcp" {
            service.scheduler = "wlc".to_owned();
        }
        let read = found.iter().find(|found| found.key == service.key).unwrap();
        assert_eq!(read.flags, Flags::exactly(service.flags.value | Flags::HASHED), "{name}");
        assert_eq!(read.flags.chosen(), service.flags.chosen(), "{name}");
        service.flags = read.flags;
        assert_eq!(*read, service, "{name}");
    }
}

#[test]
fn captured_destinations_are_read() {
    let (_, answers) = captured("ipvs_save");
    // The family that is passed in yields to the one in the message.
    let read = |message: &Message<'_>| IPVS.decode_destination(message, IpFamily::V4).unwrap();
    let found: Vec<Destination> = all_messages(&answers).iter().filter_map(read).collect();
    let mut expected = [
        Destination::new("10.0.0.1:6443".parse().unwrap(), 0),
        Destination::new("[fd00::1]:6443".parse().unwrap(), 0),
        tunnel(),
    ];
    (expected[0].upper_threshold, expected[0].lower_threshold) = (10, 5);
    for destination in &mut expected {
        destination.tunnel.get_or_insert_default();
        destination.connections = Some(Connections::default());
    }
    assert_eq!(found.len(), 3);
    assert!(expected.iter().all(|one| found.contains(one)), "{found:#?}");
}

#[test]
fn captured_settings_are_read() {
    let (_, answers) = captured("ipvs_service_add_tcp");
    let info: Vec<_> = all_messages(&answers).iter().filter_map(|message| IPVS.decode_info(message).unwrap()).collect();
    assert_eq!(info, [Info { version: 0x01_02_01, connection_table_size: 4096 }]);
    let (_, answers) = captured("ipvs_timeouts_get");
    let timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
    let found = all_messages(&answers).iter().find_map(|message| IPVS.decode_timeouts(message).unwrap());
    assert_eq!(found, Some(timeouts));
    assert_eq!(IPVS.set_timeouts(timeouts).payload, last_request("ipvs_timeouts_set").1);
}

#[test]
fn captured_refusals_have_a_kind() {
    assert_eq!(refusal("ipvs_service_add_exists").kind(), ErrorKind::Exists);
    assert_eq!(refusal("ipvs_service_edit_missing").kind(), ErrorKind::NotFound);
    assert_eq!(refusal("ipvs_destination_delete_missing").kind(), ErrorKind::NotFound);
}

fn key() -> impl Strategy<Value = ServiceKey> {
    let family = prop_oneof![Just(IpFamily::V4), Just(IpFamily::V6)];
    prop_oneof![
        any::<(u16, IpAddr, u16)>()
            .prop_map(|(protocol, ip, port)| ServiceKey::address(protocol, SocketAddr::new(ip, port))),
        (family, any::<u32>()).prop_map(|(family, mark)| ServiceKey::mark(family, mark)),
    ]
}

fn unknown() -> impl Strategy<Value = Unknown> {
    vec((100..0x3fff_u16, vec(any::<u8>(), 0..20)), 0..3)
}

prop_compose! {
    fn service()(
        key in key(), scheduler in "[a-z]{0,15}", numbers: [u32; 4], engine in proptest::option::of("[a-z]{1,15}"),
        unknown in unknown(),
    ) -> Service {
        let [value, mask, timeout, netmask] = numbers;
        let flags = Flags { value, mask };
        Service { key, scheduler, flags, timeout, netmask, persistence_engine: engine, unknown }
    }
}

prop_compose! {
    fn destination()(
        ip: IpAddr, port: u16, forwarding: u32, numbers: [u32; 3], tunnel: Option<(u8, u16, u16)>,
        connections: Option<[u32; 3]>, unknown in unknown(),
    ) -> Destination {
        Destination {
            key: DestinationKey(SocketAddr::new(ip, port)),
            forwarding: (forwarding % 8).into(),
            weight: numbers[0],
            upper_threshold: numbers[1],
            lower_threshold: numbers[2],
            tunnel: tunnel.map(|(kind, port, flags)| Tunnel { kind, port, flags }),
            connections: connections
                .map(|[active, inactive, persistent]| Connections { active, inactive, persistent }),
            unknown,
        }
    }
}

proptest! {
    #[test]
    fn services_survive_being_written_and_read(service in service()) {
        // The kernel answers with the message that creates.
        let request = IPVS.new_service(&service);
        prop_assert_eq!(IPVS.decode_service(&sent(&request)).unwrap(), Some(service));
    }

    #[test]
    fn destinations_survive_being_written_and_read(service in key(), destination in destination(), v6: bool) {
        let request = IPVS.new_destination(&service, &destination);
        let family = if v6 { IpFamily::V6 } else { IpFamily::V4 };
        prop_assert_eq!(IPVS.decode_destination(&sent(&request), family).unwrap(), Some(destination));
        prop_assert_eq!(decoded_service(&request.payload).key, service);
    }

    #[test]
    fn settings_survive_being_written_and_read(numbers: [u32; 3]) {
        let [tcp, tcp_fin, udp] = numbers;
        let timeouts = Timeouts { tcp, tcp_fin, udp };
        prop_assert_eq!(IPVS.decode_timeouts(&sent(&IPVS.set_timeouts(timeouts))).unwrap(), Some(timeouts));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        garbage in vec(any::<u8>(), 0..120), command in 0..16_u8, at in 0..4000_usize, value: u8,
    ) {
        let (_, answers) = captured("ipvs_save");
        let mut spoiled = answers.concat();
        let at = at % spoiled.len();
        spoiled[at] = value;
        let mut payload = genl::header(command, 1);
        payload.extend(garbage);
        let mut made = Vec::new();
        Request { kind: 28, flags: 0, payload }.write(0, 1, &mut made);
        for datagram in [spoiled, made] {
            for message in messages(&datagram).flatten() {
                let _ = (IPVS.decode_service(&message), IPVS.decode_destination(&message, IpFamily::V6));
                let _ = (IPVS.decode_info(&message), IPVS.decode_timeouts(&message));
            }
        }
    }
}
