//! The kernel's load balancer. These tests need `ip_vs`: where the machine's kernel has none they run in the lab
//! (`cargo xtask lab`), which sets `PORTOLAN_LAB`; without it they say so and pass.

mod linux_support;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use linux_support::*;
use portolan::kernel::ErrorKind;
use portolan::net::IpFamily;
use portolan::netlink::genl::{self, Family};
use portolan::netlink::ipvs::{
    self, Connections, Destination, Flags, Forwarding, Info, Ipvs, Service, ServiceKey, Timeouts,
};
use portolan::netlink::message::Request;
use portolan::netlink::socket::{Connection, GENERIC, ROUTE};
use portolan::netlink::{NetlinkError, link};

const TCP: u16 = 6;
const UDP: u16 = 17;
const SCTP: u16 = 132;

/// A socket with the family resolved.
struct Lab {
    genl: Connection,
    ipvs: Ipvs,
}

/// Runs a test in a namespace of its own, if the kernel can.
fn in_lab(test: impl FnOnce(&mut Lab) + Send) {
    if !Path::new("/proc/net/ip_vs").exists() {
        // A kernel with modules loads it when it is asked for the family.
        let _ = resolve(ipvs::FAMILY);
    }
    if !Path::new("/proc/net/ip_vs").exists() {
        assert!(std::env::var_os("PORTOLAN_LAB").is_none(), "the lab's kernel has no ip_vs");
        println!("not run: this kernel has no ip_vs; use `cargo xtask lab`");
        return;
    }
    in_namespace(|| {
        let (genl, family) = resolve(ipvs::FAMILY).unwrap();
        test(&mut Lab { genl, ipvs: Ipvs::new(&family) });
    });
}

fn resolve(name: &str) -> Result<(Connection, Family), NetlinkError> {
    let mut genl = Connection::open(GENERIC, Duration::from_secs(30))?;
    let mut family = None;
    genl.request(&genl::get_family(name), |message| {
        family = genl::decode_family(message)?;
        Ok(())
    })?;
    Ok((genl, family.unwrap()))
}

impl Lab {
    fn run(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.genl.request(&request, |_| Ok(()))
    }

    fn ok(&mut self, request: Request) {
        assert_eq!(self.run(request), Ok(()));
    }

    /// The number and the kind of the error.
    fn refused(&mut self, request: Request) -> (i32, ErrorKind) {
        match self.run(request) {
            Err(error @ NetlinkError::Refused { errno, .. }) => (errno, error.kind()),
            other => panic!("{other:?}"),
        }
    }

    fn services(&mut self) -> Vec<Service> {
        let ipvs = self.ipvs;
        let mut services = self
            .genl
            .dump(&ipvs.dump_services(), Vec::new, |list, message| {
                list.extend(ipvs.decode_service(message)?);
                Ok(())
            })
            .unwrap();
        services.sort_by_key(|service| service.key);
        services
    }

    fn destinations(&mut self, service: &ServiceKey) -> Vec<Destination> {
        let ipvs = self.ipvs;
        let mut destinations = self
            .genl
            .dump(&ipvs.dump_destinations(service), Vec::new, |list, message| {
                list.extend(ipvs.decode_destination(message, service.family())?);
                Ok(())
            })
            .unwrap();
        destinations.sort_by_key(|destination| destination.key);
        destinations
    }

    fn get(&mut self, key: &ServiceKey) -> Result<Service, NetlinkError> {
        let ipvs = self.ipvs;
        let mut found = None;
        self.genl.request(&ipvs.get_service(key), |message| {
            found = ipvs.decode_service(message)?;
            Ok(())
        })?;
        Ok(found.unwrap())
    }
}

fn service(protocol: u16, address: &str, scheduler: &str) -> Service {
    Service::new(ServiceKey::address(protocol, address.parse().unwrap()), scheduler)
}

fn destination(address: &str, weight: u32) -> Destination {
    Destination::new(address.parse().unwrap(), weight)
}

/// As the kernel tells of a service: with its own flag.
fn told(service: &Service) -> Service {
    Service { flags: Flags::exactly(service.flags.value | Flags::HASHED), ..service.clone() }
}

/// As the kernel tells of a destination without connections.
fn told_destination(destination: &Destination) -> Destination {
    Destination {
        tunnel: Some(destination.tunnel.unwrap_or_default()),
        connections: Some(Connections::default()),
        ..destination.clone()
    }
}

/// One service of each kind.
fn all_kinds() -> Vec<Service> {
    let mut services = Vec::new();
    for protocol in [TCP, UDP, SCTP] {
        services.push(service(protocol, "10.96.0.1:443", "rr"));
        services.push(service(protocol, "[fd00:96::1]:443", "wlc"));
    }
    let mut sticky = service(TCP, "10.96.0.2:80", "mh");
    sticky.flags = Flags::exactly(Flags::PERSISTENT | Flags::SCHEDULER_1 | Flags::SCHEDULER_2);
    sticky.timeout = 10800;
    let mut sticky6 = Service { key: ServiceKey::address(TCP, "[fd00:96::2]:80".parse().unwrap()), ..sticky.clone() };
    sticky6.netmask = 64;
    let mut network = Service { key: ServiceKey::mark(IpFamily::V4, 7), ..sticky.clone() };
    network.netmask = 0xffff_ff00;
    let mut each = service(UDP, "10.96.0.3:53", "sh");
    each.flags = Flags::exactly(Flags::ONE_PACKET);
    services.extend([sticky, sticky6, network, each, Service::new(ServiceKey::mark(IpFamily::V6, 7), "lc")]);
    services.sort_by_key(|service| service.key);
    services
}

#[test]
fn the_family_has_a_number_and_the_kernel_a_version() {
    in_lab(|lab| {
        let (_, family) = resolve(ipvs::FAMILY).unwrap();
        assert_eq!((family.name.as_str(), family.version, family.header_size), ("IPVS", 1, 0));
        assert!(family.id > 0x10);
        let ipvs = lab.ipvs;
        let mut info = Info::default();
        lab.genl
            .request(&ipvs.get_info(), |message| {
                info = ipvs.decode_info(message)?.unwrap_or(info);
                Ok(())
            })
            .unwrap();
        assert_eq!(info.version, 0x01_02_01);
        assert!(info.connection_table_size.is_power_of_two(), "{info:?}");
        assert_eq!(resolve("NOSUCH").err().unwrap().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn services_of_every_kind_are_read_as_they_were_written() {
    in_lab(|lab| {
        let all = all_kinds();
        for service in &all {
            lab.ok(lab.ipvs.new_service(service));
            assert_eq!(lab.get(&service.key).unwrap(), told(service));
        }
        assert_eq!(lab.services(), all.iter().map(told).collect::<Vec<_>>());

        // Edited: other scheduler, no flags; then back.
        for service in &all {
            let plain = Service { scheduler: "rr".to_owned(), flags: Flags::exactly(0), timeout: 0, ..service.clone() };
            lab.ok(lab.ipvs.set_service(&plain));
            assert_eq!(lab.get(&service.key).unwrap(), told(&plain));
            // Only what the mask names changes.
            let masked = Service { flags: Flags { value: u32::MAX, mask: Flags::SCHEDULER_3 }, ..plain.clone() };
            lab.ok(lab.ipvs.set_service(&masked));
            assert_eq!(lab.get(&service.key).unwrap().flags.chosen(), Flags::SCHEDULER_3);
            lab.ok(lab.ipvs.set_service(service));
        }
        assert_eq!(lab.services(), all.iter().map(told).collect::<Vec<_>>());

        let foreign = ServiceKey::mark(IpFamily::V4, 7);
        for service in all.iter().filter(|service| service.key != foreign) {
            lab.ok(lab.ipvs.delete_service(&service.key));
        }
        let left: Vec<_> = lab.services().iter().map(|service| service.key).collect();
        assert_eq!(left, [foreign], "a service of somebody else stays");
    });
}

#[test]
fn destinations_of_every_kind_are_read_as_they_were_written() {
    in_lab(|lab| {
        for service in all_kinds() {
            lab.ok(lab.ipvs.new_service(&service));
            let port = match service.key.0 {
                ipvs::Virtual::Address { address, .. } => address.port(),
                ipvs::Virtual::Mark { .. } => 0,
            };
            let address = |n: u16| match service.key.family() {
                IpFamily::V4 => SocketAddr::new(IpAddr::from([10, 0, 0, n as u8]), port),
                IpFamily::V6 => SocketAddr::new(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]), port),
            };
            let mut limited = Destination::new(address(3), 7);
            (limited.upper_threshold, limited.lower_threshold) = (100, 50);
            let direct = Destination { forwarding: Forwarding::DirectRoute, ..Destination::new(address(4), 1) };
            let all = [Destination::new(address(1), 1), Destination::new(address(2), 0), limited, direct];
            for destination in &all {
                lab.ok(lab.ipvs.new_destination(&service.key, destination));
            }
            let mut expected = all.each_ref().map(told_destination);
            assert_eq!(lab.destinations(&service.key), expected, "{:?}", service.key);

            let drained = Destination { weight: 0, ..all[0].clone() };
            lab.ok(lab.ipvs.set_destination(&service.key, &drained));
            lab.ok(lab.ipvs.delete_destination(&service.key, &all[3].key));
            expected[0].weight = 0;
            assert_eq!(lab.destinations(&service.key), expected[..3]);
        }
    });
}

#[test]
fn refusals_have_the_numbers_of_the_table() {
    in_lab(|lab| {
        let ipvs = lab.ipvs;
        let made = service(TCP, "10.96.0.1:443", "rr");
        let missing = service(TCP, "10.96.0.2:443", "rr");
        let inside = destination("10.0.0.1:6443", 1);
        let absent = destination("10.0.0.2:6443", 1);
        lab.ok(ipvs.new_service(&made));
        lab.ok(ipvs.new_destination(&made.key, &inside));
        let same = Service { scheduler: "lc".to_owned(), ..made.clone() };
        assert_eq!(lab.refused(ipvs.new_service(&same)), (17, ErrorKind::Exists));
        assert_eq!(lab.get(&made.key).unwrap().scheduler, "rr");
        let unknown = Service { scheduler: "nosuch".to_owned(), ..made.clone() };
        assert_eq!(lab.refused(ipvs.set_service(&unknown)), (2, ErrorKind::NotFound));
        assert_eq!(lab.refused(ipvs.new_service(&Service { key: missing.key, ..unknown })), (2, ErrorKind::NotFound));
        let no_service = (3, ErrorKind::NotFound);
        assert_eq!(lab.refused(ipvs.set_service(&missing)), no_service);
        assert_eq!(lab.refused(ipvs.delete_service(&missing.key)), no_service);
        assert_eq!(lab.refused(ipvs.get_service(&missing.key)), no_service);
        assert_eq!(lab.refused(ipvs.new_destination(&missing.key, &inside)), no_service);
        assert_eq!(lab.refused(ipvs.set_destination(&missing.key, &inside)), no_service);
        assert_eq!(lab.refused(ipvs.delete_destination(&missing.key, &inside.key)), no_service);
        assert_eq!(lab.destinations(&missing.key), [], "no error for a dump");

        assert_eq!(lab.refused(ipvs.new_destination(&made.key, &inside)), (17, ErrorKind::Exists));
        assert_eq!(lab.refused(ipvs.set_destination(&made.key, &absent)), (2, ErrorKind::NotFound));
        assert_eq!(lab.refused(ipvs.delete_destination(&made.key, &absent.key)), (2, ErrorKind::NotFound));
        let invalid = (22, ErrorKind::Rejected);
        let other_family = destination("[fd00::1]:6443", 1);
        assert_eq!(lab.refused(ipvs.new_destination(&made.key, &other_family)), invalid);
        for address in ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1"] {
            assert_eq!(lab.refused(ipvs.new_destination(&made.key, &destination(address, 1))), invalid, "{address}");
        }
        let range = (34, ErrorKind::Rejected);
        assert_eq!(lab.refused(ipvs.new_destination(&made.key, &destination("10.0.0.3:1", u32::MAX))), range);
        let crossed = Destination { upper_threshold: 1, lower_threshold: 2, ..inside.clone() };
        assert_eq!(lab.refused(ipvs.set_destination(&made.key, &crossed)), range);
        let v6 = service(TCP, "[fd00::96]:1", "rr");
        for prefix in [0, 129] {
            assert_eq!(lab.refused(ipvs.new_service(&Service { netmask: prefix, ..v6.clone() })), invalid);
        }
        assert_eq!(lab.refused(ipvs.set_timeouts(Timeouts { tcp: u32::MAX, ..Timeouts::default() })), invalid);
    });
}

#[test]
fn nobody_without_rights_reads_or_writes() {
    in_lab(|_| {
        let none = rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            permitted: rustix::thread::CapabilitySet::empty(),
            inheritable: rustix::thread::CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none).unwrap();
        let (mut genl, family) = resolve(ipvs::FAMILY).unwrap();
        let ipvs = Ipvs::new(&family);
        for request in [ipvs.new_service(&service(TCP, "10.96.0.1:1", "rr")), ipvs.get_info()] {
            assert_eq!(genl.request(&request, |_| Ok(())).unwrap_err().kind(), ErrorKind::Denied);
        }
        let error = genl.dump(&ipvs.dump_services(), || (), |(), _| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
    });
}

#[test]
fn timeouts_are_set_and_zero_keeps_them() {
    in_lab(|lab| {
        let ipvs = lab.ipvs;
        let read = |lab: &mut Lab| {
            let mut found = Timeouts::default();
            lab.genl
                .request(&ipvs.get_timeouts(), |message| {
                    found = ipvs.decode_timeouts(message)?.unwrap_or(found);
                    Ok(())
                })
                .unwrap();
            found
        };
        assert_eq!(read(lab), Timeouts { tcp: 900, tcp_fin: 120, udp: 300 });
        lab.ok(ipvs.set_timeouts(Timeouts { tcp: 1000, tcp_fin: 0, udp: 77 }));
        assert_eq!(read(lab), Timeouts { tcp: 1000, tcp_fin: 120, udp: 77 });
    });
}

#[test]
fn a_thousand_services_with_ten_destinations_each_are_written_in_batches() {
    in_lab(|lab| {
        let ipvs = lab.ipvs;
        let services: Vec<Service> =
            (0..1000).map(|n| service(TCP, &format!("10.96.{}.{}:443", n / 250, n % 250 + 1), "rr")).collect();
        let made: Vec<Destination> = (1..=10).map(|n| destination(&format!("10.0.0.{n}:6443"), 1)).collect();
        let timed = |lab: &mut Lab, what: &str, requests: Vec<Request>| {
            let start = Instant::now();
            let results = lab.genl.batch(&requests);
            println!("{what}: {} requests in {:?}", requests.len(), start.elapsed());
            assert_eq!(results.len(), requests.len());
            results
        };
        let results = timed(lab, "new services", services.iter().map(|service| ipvs.new_service(service)).collect());
        assert!(results.iter().all(Result::is_ok));
        let additions: Vec<Request> = services
            .iter()
            .flat_map(|service| made.iter().map(|destination| ipvs.new_destination(&service.key, destination)))
            .collect();
        assert!(timed(lab, "new destinations", additions.clone()).iter().all(Result::is_ok));

        let start = Instant::now();
        assert_eq!(lab.services(), services.iter().map(told).collect::<Vec<_>>());
        println!("dump of services: {:?}", start.elapsed());
        let start = Instant::now();
        let mut expected: Vec<Destination> = made.iter().map(told_destination).collect();
        expected.sort_by_key(|destination| destination.key);
        for service in &services {
            assert_eq!(lab.destinations(&service.key), expected);
        }
        println!("1,000 dumps of destinations: {:?}", start.elapsed());

        // Everything once more is refused, each request with its own error.
        let refused = timed(lab, "new destinations that exist", additions);
        assert!(refused.iter().all(|result| result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Exists)));

        // Failures among successes stay in their places.
        let mixed: Vec<Request> = services
            .iter()
            .enumerate()
            .map(|(at, service)| match at % 2 {
                0 => ipvs.set_destination(&service.key, &destination("10.0.0.1:6443", 0)),
                _ => ipvs.set_destination(&service.key, &destination("10.9.9.9:6443", 0)),
            })
            .collect();
        for (at, result) in timed(lab, "set destinations, half of them missing", mixed).iter().enumerate() {
            assert_eq!(result.is_ok(), at % 2 == 0, "{at}: {result:?}");
        }
        let removals = services.iter().map(|service| ipvs.delete_destination(&service.key, &made[0].key)).collect();
        assert!(timed(lab, "delete destinations", removals).iter().all(Result::is_ok));
        let removals = services.iter().map(|service| ipvs.delete_service(&service.key)).collect();
        assert!(timed(lab, "delete services", removals).iter().all(Result::is_ok));
        assert_eq!(lab.services(), []);
    });
}

#[test]
fn the_kernel_itself_names_what_we_named() {
    in_lab(|lab| {
        let made = service(TCP, "10.96.0.1:443", "rr");
        lab.ok(lab.ipvs.new_service(&made));
        lab.ok(lab.ipvs.new_destination(&made.key, &destination("10.0.0.1:6443", 3)));
        let v6 = service(UDP, "[fd00:96::a]:53", "lc");
        lab.ok(lab.ipvs.new_service(&v6));
        lab.ok(lab.ipvs.new_destination(&v6.key, &destination("[fd00::1]:53", 1)));
        // Addresses in hexadecimal there, which no code of ours has touched. The file of this thread, not of the process.
        let text = std::fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        let found = words.join(" ");
        for line in ["TCP 0A600001:01BB rr", "-> 0A000001:192B Masq 3"] {
            assert!(found.contains(line), "{line} in {found}");
        }
        assert!(text.contains("UDP  [fd00:0096:0000:0000:0000:0000:0000:000a]:0035 lc"), "{text}");
        assert!(text.contains("-> [fd00:0000:0000:0000:0000:0000:0000:0001]:0035"), "{text}");
    });
}

#[test]
fn a_dummy_interface_can_be_made_here() {
    in_lab(|_| {
        let mut rtnl = Connection::open(ROUTE, Duration::from_secs(10)).unwrap();
        rtnl.request(&link::create("kube-ipvs0", link::DUMMY), |_| Ok(())).unwrap();
        let mut found = None;
        rtnl.request(&link::get("kube-ipvs0"), |message| {
            found = link::decode(message)?;
            Ok(())
        })
        .unwrap();
        let made = found.unwrap();
        assert_eq!((made.kind.as_deref(), made.is_up()), (Some("dummy"), false));
        rtnl.request(&link::delete(made.index), |_| Ok(())).unwrap();
    });
}
