//! The contract of the kernel layer where the fake has nothing to compare with.

use ErrorKind::{NoSpace, NotFound, Rejected, Unsupported};
use std::sync::mpsc;

use portolan::kernel::item::DUMMY_LINK;
use portolan::kernel::{Connections, Element, ErrorKind, ItemDump, ItemKey, ItemState, Kernel, Op, RealKey, SetName};
use portolan::linux::ipvs::Needs;
use portolan::net::{IpFamily, Protocol};
use portolan::netlink::ipvs::{Destination, Forwarding, Service, ServiceKey};

use crate::linux_support::shell;
use crate::world::*;

#[test]
fn services_of_firewall_marks_all_ports_and_other_families_are_left_out() {
    in_lab(|kernel| {
        let (mut genl, ipvs) = balancer();
        let mut make = |key| genl.request(&ipvs.new_service(&Service::new(key, "rr")), |_| Ok(())).unwrap();
        make(ServiceKey::mark(IpFamily::V4, 7));
        make(ServiceKey::mark(IpFamily::V6, 7));
        done(kernel, &[add(virtual_server(IpFamily::V6, 1), plain())]);
        assert_eq!(dump(kernel, IpFamily::V4), ItemDump::default());
        let found = dump(kernel, IpFamily::V6);
        assert_eq!((found.ours, found.foreign), (vec![], vec![(virtual_server(IpFamily::V6, 1), plain())]));
    });
}

#[test]
fn real_servers_that_are_reached_in_another_way_are_written_anew() {
    in_lab(|kernel| {
        let family = IpFamily::V4;
        done(kernel, &[add(virtual_server(family, 1), plain())]);
        let (mut genl, ipvs) = balancer();
        let service = ServiceKey::address(6, "10.96.0.1:80".parse().unwrap());
        let direct = Destination {
            forwarding: Forwarding::DirectRoute,
            ..Destination::new("10.0.0.1:8080".parse().unwrap(), 1)
        };
        genl.request(&ipvs.new_destination(&service, &direct), |_| Ok(())).unwrap();
        let real = real_server(family, 1, 1);
        assert_eq!(dump(kernel, family).foreign[1], (real, ItemState::Weight(u32::MAX)));
        done(kernel, &[change(real, ItemState::Weight(1))]);
        assert_eq!(dump(kernel, family).foreign[1], (real, ItemState::Weight(1)));
        let found = kernel.connections(&server(family, 1)).unwrap();
        let key = RealKey { server: server(family, 1), address: ip("10.0.0.1"), port: 8080 };
        assert_eq!(found, [(key, Connections::default())]);
        assert_eq!(kernel.connections(&server(family, 2)).unwrap(), []);
    });
}

#[test]
fn both_families_and_all_kinds_in_one_transaction() {
    in_lab(|kernel| {
        let mut ops = Vec::new();
        for family in IpFamily::ALL {
            ops.push(add(set(family, SetName::ClusterIp), CAPACITY));
            ops.push(add(cluster_ip(family, 1), PRESENT));
            ops.push(add(virtual_server(family, 1), plain()));
            ops.push(add(real_server(family, 1, 1), ItemState::Weight(1)));
            ops.push(add(address(family, 1), bound(family == IpFamily::V6)));
            ops.push(add(route(pick(family, "10.97.0.0/16", "fd00:97::/64")), ItemState::Source(None)));
        }
        done(kernel, &ops);
        for family in IpFamily::ALL {
            let mut expected: Vec<(ItemKey, ItemState)> = ops
                .iter()
                .filter_map(|op| match op {
                    Op::AddItem(key, state) if key.family() == Some(family) => Some((*key, *state)),
                    _ => None,
                })
                .collect();
            expected.push((ItemKey::Link, PRESENT));
            expected.sort_by_key(|(key, _)| *key);
            assert_eq!(dump(kernel, family), ItemDump { ours: expected, foreign: vec![] });
            assert_eq!(sorted(kernel.items(family, &LEAVING).unwrap()), dump(kernel, family));
        }
        let link = shell(&format!("ip -o link show {DUMMY_LINK}"));
        assert!(!link.contains("UP"), "{link}");
        assert!(shell("ip -6 route show table main").trim().is_empty(), "no route but the local one");
    });
}

#[test]
fn a_scheduler_that_is_missing_is_named() {
    in_lab(|kernel| {
        let family = IpFamily::V4;
        let odd = scheduled("nosuch", 0, 0);
        let ops = [add(virtual_server(family, 1), odd), add(virtual_server(family, 2), plain())];
        let results = kernel.apply(&ops);
        let error = results[0].clone().unwrap_err();
        assert_eq!((error.kind, results[1].clone()), (Unsupported, Ok(())));
        assert!(error.message.contains("ip_vs_nosuch") && error.message.contains("10.96.0.1:80"), "{error}");
        let results = kernel.apply(&[change(virtual_server(family, 2), odd)]);
        assert_eq!(results[0].clone().unwrap_err().kind, Unsupported);
        assert_eq!(kinds(kernel, &[change(virtual_server(family, 9), odd)]), [Some(NotFound)]);
        // A state that makes no sense costs only itself.
        let ops = [add(virtual_server(family, 3), PRESENT), add(virtual_server(family, 4), plain())];
        assert_eq!(kinds(kernel, &ops), [Some(Rejected), None]);
    });
}

#[test]
fn a_link_that_only_has_the_name_is_not_touched() {
    in_lab(|kernel| {
        shell(&format!("ip link add {DUMMY_LINK} type bridge"));
        let error = kernel.items(IpFamily::V4, &SERVING).unwrap_err();
        assert!(error.message.contains("is a bridge, not a dummy"), "{error}");
        assert_eq!(kernel.items(IpFamily::V4, &LEAVING).unwrap(), ItemDump::default());
        let ops = [
            add(address(IpFamily::V4, 1), bound(false)),
            add(route("10.96.0.0/12"), ItemState::Source(None)),
            delete(ItemKey::Link),
        ];
        assert_eq!(kinds(kernel, &ops), [Some(Rejected), None, Some(Rejected)]);
        let error = kernel.ipvs_requirements(&needs("rr")).unwrap_err();
        assert!(error.message.contains("not a dummy"), "{error}");
        assert_eq!(kernel.ipvs_requirements(&Needs { dummy_link: false, ..needs("rr") }), Ok(()));
        shell(&format!("ip addr add 192.0.2.7/32 dev {DUMMY_LINK}"));
        assert!(kernel.addresses(IpFamily::V4).unwrap().contains(&ip("192.0.2.7")));
    });
}

#[test]
fn a_set_of_another_type_is_named() {
    in_lab(|kernel| {
        shell("ipset create KUBE-CLUSTER-IP hash:net; ipset create KUBE-6-IPVS-IPS hash:ip family inet");
        for (family, name) in [(IpFamily::V4, "KUBE-CLUSTER-IP"), (IpFamily::V6, "KUBE-6-IPVS-IPS")] {
            let error = kernel.items(family, &SERVING).unwrap_err();
            assert_eq!(error.kind, Rejected);
            assert!(error.message.contains(name) && error.message.contains("ipset destroy"), "{error}");
            assert_eq!(kernel.items(family, &LEAVING).unwrap(), ItemDump::default(), "somebody else's");
        }
    });
}

#[test]
fn what_an_interrupted_growth_leaves_behind_is_removed() {
    natively(|kernel| {
        let family = IpFamily::V4;
        let cluster = set(family, SetName::ClusterIp);
        let names = || shell("ipset list -n");
        let spare = "ipset create PORTOLAN-SPARE hash:ip,port; ipset add PORTOLAN-SPARE 10.0.0.1,tcp:1";
        done(kernel, &[add(cluster, CAPACITY), add(cluster_ip(family, 1), PRESENT)]);
        shell(spare);
        // It is in the way of another growth.
        done(kernel, &[change(cluster, ItemState::Capacity(70000))]);
        assert_eq!(names().trim(), "KUBE-CLUSTER-IP");
        // A new process finds it, and removes it with what it does first. A dump writes nothing.
        shell(spare);
        let found = kernel.items(family, &LEAVING).unwrap();
        assert_eq!(found.ours.len(), 2);
        assert_eq!(names().lines().count(), 2);
        assert_eq!(kernel.apply(&[]), []);
        assert_eq!(names().trim(), "KUBE-CLUSTER-IP");
        // Growth keeps what it cannot take over.
        assert_eq!(kinds(kernel, &[change(cluster, ItemState::Capacity(0))]), [Some(NoSpace)]);
        assert_eq!(names().trim(), "KUBE-CLUSTER-IP");
        assert_eq!(sorted(kernel.items(family, &LEAVING).unwrap()), sorted(found));
    });
}

#[test]
fn nothing_is_permitted_without_rights() {
    in_lab(|kernel| {
        let none = rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            permitted: rustix::thread::CapabilitySet::empty(),
            inheritable: rustix::thread::CapabilitySet::empty(),
        };
        let family = IpFamily::V4;
        let ops = [
            add(set(family, SetName::ClusterIp), CAPACITY),
            add(cluster_ip(family, 1), PRESENT),
            add(cluster_ip(family, 2), PRESENT),
            add(virtual_server(family, 1), plain()),
            add(address(family, 1), bound(false)),
            add(route("10.96.0.0/12"), ItemState::Source(None)),
        ];
        rustix::thread::set_capabilities(None, none).unwrap();
        assert_eq!(kinds(kernel, &ops), [Some(ErrorKind::Denied); 6]);
        assert_eq!(kernel.items(family, &SERVING).unwrap_err().kind, ErrorKind::Denied);
        let needed = kernel.ipvs_requirements(&needs("rr"));
        assert_eq!(needed.unwrap_err().kind, ErrorKind::Denied);
    });
}

#[test]
fn what_kube_proxy_made_is_taken_over() {
    in_lab(|kernel| {
        for family in IpFamily::ALL {
            let (six, inet) = (pick(family, "", "6-"), pick(family, "inet", "inet6"));
            let (net, vip) = (pick(family, "10.0.0.0/8", "fd00::/8"), vip(family, 1));
            shell(&format!(
                "ipset create KUBE-{six}CLUSTER-IP hash:ip,port family {inet} hashsize 1024 maxelem 65536
                 ipset create KUBE-{six}NODE-PORT-TCP bitmap:port range 0-65535
                 ipset create KUBE-{six}LOAD-BALANCER-SOURCE-{} hash:ip,port,net family {inet} comment
                 ipset add KUBE-{six}CLUSTER-IP {vip},tcp:80
                 ipset add KUBE-{six}NODE-PORT-TCP 30080
                 ipset add KUBE-{six}LOAD-BALANCER-SOURCE-{} {vip},tcp:80,{net} comment x
                 ipset add KUBE-{six}LOAD-BALANCER-SOURCE-{} {vip},udp:80,{net} nomatch
                 ip link show {DUMMY_LINK} >/dev/null 2>&1 || ip link add {DUMMY_LINK} type dummy
                 ip addr add {vip} {} dev {DUMMY_LINK}",
                pick(family, "CIDR", "CID"),
                pick(family, "CIDR", "CID"),
                pick(family, "CIDR", "CID"),
                pick(family, "broadcast 10.96.0.1", ""),
            ));
            let ports = SetName::NodePortTcp;
            let ranges = SetName::LoadBalancerSourceCidr;
            let range = Element::IpPortNet(vip, Protocol::Tcp, 80, net.parse().unwrap());
            let mut expected = vec![
                (set(family, ranges), CAPACITY),
                (set(family, SetName::ClusterIp), CAPACITY),
                (set(family, ports), ItemState::Capacity(u32::MAX)),
                (element(family, ranges, range), PRESENT),
                (cluster_ip(family, 1), PRESENT),
                (element(family, ports, Element::Port(30080)), PRESENT),
                (address(family, 1), bound(false)),
                (ItemKey::Link, PRESENT),
            ];
            expected.sort_by_key(|(key, _)| *key);
            assert_eq!(dump(kernel, family).ours, expected);
            done(
                kernel,
                &[
                    change(set(family, SetName::ClusterIp), ItemState::Capacity(100_000)),
                    add(cluster_ip(family, 2), PRESENT),
                    delete(element(family, ranges, range)),
                    delete(set(family, ports)),
                    change(address(family, 1), bound(true)),
                ],
            );
            let found = dump(kernel, family).ours;
            assert!(found.contains(&(set(family, SetName::ClusterIp), ItemState::Capacity(100_000))));
            assert!(found.contains(&(cluster_ip(family, 1), PRESENT)));
            assert!(found.contains(&(address(family, 1), bound(true))));
            done(kernel, &[delete(address(family, 1))]);
        }
        assert!(shell(&format!("ip -o addr show dev {DUMMY_LINK}")).trim().is_empty());
    });
}

#[test]
fn virtual_servers_are_read_whole_while_others_come_and_go() {
    in_lab(|kernel| {
        let family = IpFamily::V4;
        let fill: Vec<Op> = (0..300).map(|n| add(virtual_server(family, n), plain())).collect();
        done(kernel, &fill);
        let (stop, stopped) = mpsc::channel::<()>();
        let mut other = kernel.clone();
        std::thread::scope(|scope| {
            // Of the same namespace, since it is inherited.
            scope.spawn(move || {
                while let Err(mpsc::TryRecvError::Empty) = stopped.try_recv() {
                    for n in 300..310 {
                        other.apply(&[add(virtual_server(family, n), plain())]);
                    }
                    for n in 300..310 {
                        other.apply(&[delete(virtual_server(family, n))]);
                    }
                }
            });
            let (mut read, mut given_up) = (0, 0);
            for _ in 0..30 {
                match kernel.items(family, &SERVING) {
                    Ok(found) => {
                        let lasting = (0..300).map(|n| virtual_server(family, n));
                        let missing: Vec<ItemKey> =
                            lasting.filter(|key| !found.foreign.contains(&(*key, plain()))).collect();
                        assert_eq!(missing, []);
                        read += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind, ErrorKind::Transient, "{error}");
                        given_up += 1;
                    }
                }
            }
            println!("read {read} times, given up {given_up} times");
            drop(stop);
        });
    });
}
