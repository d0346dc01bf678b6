use super::view::*;
use crate::backend::{Backend, Fragment};
use crate::iptables::tests::setup::*;
use crate::ipvs::{IpvsBackend, IpvsSettings, Vips, render_text};
use crate::kernel::item::Scheduler;
use crate::net::{IpFamily, Protocol};

/// The part behind a heading.
fn part(text: &str, heading: &str) -> Vec<String> {
    let behind = text.lines().skip_while(|line| !line.ends_with(heading)).skip(1);
    behind.take_while(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

fn of_service(setup: &Setup, settings: IpvsSettings, family: IpFamily) -> String {
    let out = lowered(setup, &settings);
    render_text(family, [&IpvsBackend { settings }.base(&setup.node), &out])
}

#[test]
fn everything_is_one_text_per_family() {
    let mut setup = bare()
        .port("web", Protocol::Tcp, 80, Some(30000))
        .port("dns", Protocol::Udp, 53, None)
        .external_ip("192.0.2.1")
        .vip("1.2.3.4")
        .external_local()
        .source_range("203.0.113.0/24")
        .endpoint(A, HERE)
        .endpoint(B, ELSEWHERE);
    setup.service.affinity_seconds = Some(10800);
    let text = of_service(&setup, IpvsSettings::default(), IpFamily::V4);
    assert_eq!(text, include_str!("service.txt"));
}

#[test]
fn tools_are_told_of_families_protocols_and_flags() {
    let mut setup = bare().port("assoc", Protocol::Sctp, 9, None).endpoint("fd00:10::1", HERE);
    setup.service.cluster_ip_v6 = Some("fd00:30::41".parse().unwrap());
    let scheduler = Scheduler::new("mh").unwrap();
    let text = of_service(&setup, IpvsSettings { scheduler, ..IpvsSettings::default() }, IpFamily::V6);
    assert_eq!(
        part(&text, "ipvsadm -R"),
        [
            "-A --sctp-service [fd00:30::41]:9 -s mh -b flag-2",
            "-a --sctp-service [fd00:30::41]:9 -r [fd00:10::1]:9 -m -w 1"
        ]
    );
    assert_eq!(part(&text, "addresses"), ["ip addr add fd00:30::41/128 dev kube-ipvs0 preferred_lft 0"]);
    let sets = part(&text, "ipset restore");
    assert!(sets.contains(&"create KUBE-6-IPVS-IPS hash:ip family inet6 hashsize 1024 maxelem 65536".to_owned()));
    assert!(sets.contains(&"add KUBE-6-CLUSTER-IP fd00:30::41,sctp:9".to_owned()));
    assert!(!part(&text, "ip6tables-restore --noflush").is_empty());
}

#[test]
fn routes_are_written_as_routes() {
    let vips = Vips::Routes { service_cidrs: vec!["172.30.0.0/16".parse().unwrap()] };
    let text = of_service(&external(), IpvsSettings { vips, ..IpvsSettings::default() }, IpFamily::V4);
    assert_eq!(
        part(&text, "addresses"),
        [
            "ip route add local 1.2.3.4/32 dev kube-ipvs0 src 192.168.0.2",
            "ip route add local 172.30.0.0/16 dev kube-ipvs0 src 192.168.0.2",
            "ip route add local 192.0.2.1/32 dev kube-ipvs0 src 192.168.0.2",
        ]
    );
}

#[test]
fn what_two_services_ask_for_is_written_once() {
    let out = fragment(&external());
    let none = Fragment::default();
    assert_eq!(render_text(IpFamily::V4, [&out, &out]), render_text(IpFamily::V4, [&none, &out]));
}
