//! Examples taken from `iptables-save` 1.8.9 of both variants, and laws.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::option::of;
use proptest::prelude::*;
use rstest::rstest;

use crate::kernel::rule::{
    AddressBits, CommentPosition, ConntrackStates, Mark, Not, Probability, Recent, Rule, SetMatch, Sides, Target,
};
use crate::kernel::{ChainBody, ChainName, SetKey, SetName, VirtualKey};
use crate::net::{IpFamily, Protocol};

fn text(rule: &Rule) -> String {
    let mut out = String::new();
    rule.render(&mut out);
    out
}

fn bare(rule: &Rule) -> String {
    let mut out = String::new();
    rule.render_without_comment(&mut out);
    out
}

/// What is printed, and what portolan writes for the same rule.
#[rstest]
#[case("", "")]
#[case("-s 10.0.0.1/32 -j DROP", "-s 10.0.0.1/32 -j DROP")]
#[case("-s 10.0.0.1 -j DROP", "-s 10.0.0.1/32 -j DROP")]
#[case("! -s fd00::/64 ! -i br+ -p udp -j KUBE-MARK-MASQ", "! -s fd00::/64 ! -i br+ -p udp -j KUBE-MARK-MASQ")]
#[case("-d 0.0.0.48/0.0.0.240 -j KUBE-C", "-d 0.0.0.48/0.0.0.240 -j KUBE-C")]
#[case("-d ::30/::f0 -j KUBE-C", "-d ::30/::f0 -j KUBE-C")]
#[case("-j REJECT --reject-with icmp-port-unreachable", "-j REJECT")]
#[case("-j REJECT --reject-with icmp6-port-unreachable", "-j REJECT")]
#[case("-j MARK --set-xmark 0x4000/0x4000", "-j MARK --or-mark 0x004000")]
#[case("-j MARK --set-xmark 0x4000/0x0", "-j MARK --xor-mark 0x004000")]
#[case("-m mark ! --mark 0x4000/0x4000 -j RETURN", "-m mark ! --mark 0x004000/0x004000 -j RETURN")]
#[case("-m mark --mark 0x1", "-m mark --mark 0x000001/0xffffffff")]
#[case("-m comment --comment plain -j ACCEPT", "-m comment --comment \"plain\" -j ACCEPT")]
#[case("-m comment --comment \"it\\'s \\\"x\\\" \\\\\"", "-m comment --comment \"it's \\\"x\\\" \\\\\"")]
#[case("-m comment --comment \"\" -j MASQUERADE", "-m comment --comment \"\" -j MASQUERADE")]
#[case("-m nfacct --nfacct-name  ct_dropped -j DROP", "-m nfacct --nfacct-name ct_dropped -j DROP")]
#[case(
    "-m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-1 --mask 255.255.255.255 --rsource -j KUBE-C",
    "-m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-1 -j KUBE-C"
)]
#[case(
    "-p udp -m recent --set --name KUBE-SEP-1 --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource \
     -j DNAT --to-destination [fd00::1]:80",
    "-p udp -m recent --set --name KUBE-SEP-1 -j DNAT --to-destination [fd00::1]:80"
)]
#[case(
    "-m statistic --mode random --probability 0.33333333349",
    "-m statistic --mode random --probability 0.3333333333"
)]
#[case(
    "-m statistic --mode random --probability 0.50000000000",
    "-m statistic --mode random --probability 0.5000000000"
)]
#[case(
    "-m statistic --mode random --probability 0.70000000019",
    "-m statistic --mode random --probability 0.70000000019"
)]
#[case(
    "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
    "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"
)]
#[case(
    "-d 127.0.0.0/8 -p tcp -m comment --comment ns/s:p -m tcp --dport 30001 -m nfacct --nfacct-name  n -j KUBE-EXT-A",
    "-d 127.0.0.0/8 -p tcp -m comment --comment \"ns/s:p\" -m tcp --dport 30001 -m nfacct --nfacct-name n -j KUBE-EXT-A"
)]
#[case(
    "-m comment --comment x -m set --match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ",
    "-m comment --comment \"x\" -m set --match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ"
)]
#[case(
    "! -s 10.0.0.0/8 -m conntrack --ctstate NEW -m set ! --match-set KUBE-LOOP-BACK dst,dst,src -j DROP",
    "! -s 10.0.0.0/8 -m conntrack --ctstate NEW -m set ! --match-set KUBE-LOOP-BACK dst,dst,src -j DROP"
)]
#[case(
    "-p tcp -m set --match-set KUBE-6-NODE-PORT-TCP dst -m addrtype --src-type LOCAL -j RETURN",
    "-p tcp -m set --match-set KUBE-6-NODE-PORT-TCP dst -m addrtype --src-type LOCAL -j RETURN"
)]
#[case(
    "-m ipvs --vaddr 10.0.0.1 --vproto tcp --vport 80 -j DROP",
    "-m ipvs --vproto 6 --vaddr 10.0.0.1 --vport 80 -j DROP"
)]
#[case(
    "-m addrtype --src-type LOCAL -m ipvs --vproto 132 --vaddr fd00::1 --vport 80 -j DROP",
    "-m addrtype --src-type LOCAL -m ipvs --vproto 132 --vaddr fd00::1 --vport 80 -j DROP"
)]
#[case("-m addrtype --src-type LOCAL -m addrtype --dst-type LOCAL", "-m addrtype --src-type LOCAL --dst-type LOCAL")]
fn the_printed_form_is_read_and_written_back_in_canonical_form(#[case] printed: &str, #[case] canonical: &str) {
    let rule = Rule::parse(printed).unwrap();
    assert_eq!(text(&rule), canonical);
    assert_eq!(Rule::parse(canonical).unwrap(), rule);
    assert!(Rule::parse_with_order(canonical).unwrap().canonical);
}

#[rstest]
#[case("-m addrtype --dst-type LOCAL -m mark --mark 0x1/0x1", true)]
#[case("-m mark --mark 0x1/0x1 -m addrtype --dst-type LOCAL", false)]
#[case("-m addrtype --src-type LOCAL -m addrtype --dst-type LOCAL", false)]
#[case("-m set --match-set KUBE-IPVS-IPS dst -m addrtype --src-type LOCAL", true)]
#[case("-m addrtype --src-type LOCAL -m set --match-set KUBE-IPVS-IPS dst", false)]
#[case("-m conntrack --ctstate NEW -m comment --comment x -m mark --mark 0x1/0x1", false)]
#[case("-p tcp -m tcp --dport 1 -m comment --comment x", true)]
#[case("-p tcp -m comment --comment x -m tcp -j ACCEPT", false)]
fn matches_in_another_order_are_noticed(#[case] spec: &str, #[case] canonical: bool) {
    assert_eq!(Rule::parse_with_order(spec).unwrap().canonical, canonical);
}

#[rstest]
#[case("-o eth0 -j ACCEPT")]
#[case("-g KUBE-X")]
#[case("-p icmp")]
#[case("! -p tcp")]
#[case("-p tcp -m udp --dport 53")]
#[case("-m tcp --dport 53")]
#[case("-p tcp -m udp")]
#[case("-p tcp -m tcp --dport 1:2")]
#[case("-p tcp -m tcp ! --dport 1")]
#[case("-p tcp -m multiport --dports 1,2")]
#[case("-s 10.0.0.0/255.0.255.0")]
#[case("-s 1.1.1.1 -s 2.2.2.2")]
#[case("! ! -s 1.1.1.1")]
#[case("-s 1.1.1.1 !")]
#[case("-m conntrack --ctstate NEW,INVALID")]
#[case("-m set --match-set SOMEBODY-ELSES dst,dst")]
#[case("-m set --match-set KUBE-CLUSTER-IP")]
#[case("-m set --match-set KUBE-CLUSTER-IP dst,,dst")]
#[case("-m set --match-set KUBE-CLUSTER-IP src,src,src,src,src,src,src")]
#[case("-m set --match-set KUBE-CLUSTER-IP dst -m set --match-set KUBE-LOOP-BACK dst")]
#[case("-m set --match-set KUBE-CLUSTER-IP dst --return-nomatch")]
#[case("-m ipvs --ipvs")]
#[case("-m ipvs --vproto 6 --vaddr 10.0.0.1")]
#[case("-m ipvs --vproto 6 --vaddr 10.0.0.1/32 --vport 80")]
#[case("-m ipvs --vproto 6 ! --vaddr 10.0.0.1 --vport 80")]
#[case("-m mark --mark 0x1/0x1/0x1")]
#[case("-m mark --mark 0x+1")]
#[case("-m recent --update --seconds 3 --name A --rsource")]
#[case("-m recent --rcheck --seconds 3 --name A --rsource")]
#[case("-m recent --set --name A --rdest")]
#[case("-m recent --set --name A --mask 255.255.255.0 --rsource")]
#[case("-m statistic --mode nth --every 2 --packet 0")]
#[case("-m statistic --mode random")]
#[case("-m statistic --mode random --probability NaN")]
#[case("-m statistic --mode random --probability 1.5")]
#[case("-j MARK")]
#[case("-j MARK --set-xmark 0x1/0xff")]
#[case("-j DNAT")]
#[case("-j DNAT --to-destination 1.1.1.1:80-90")]
#[case("-j DNAT --to-destination 1.1.1.1:80 --random")]
#[case("-j DNAT --to-destination [fe80::1%3]:80")]
#[case("-j MASQUERADE --to-ports 1")]
#[case("-j REJECT --reject-with tcp-reset")]
#[case("-j ACCEPT -s 1.1.1.1")]
#[case("-j ACCEPT -j DROP")]
#[case("-j")]
#[case("-m")]
#[case("-m comment --comment \"open")]
#[case("-m comment --comment \"a\"b")]
#[case("ACCEPT")]
fn what_portolan_never_writes_is_refused(#[case] spec: &str) {
    assert!(Rule::parse(spec).is_err(), "{spec}");
}

#[test]
fn comments_are_cleaned_escaped_and_cut() {
    let rule = |comment: &str| Rule { comment: Some(comment.to_owned()), ..Rule::default() };
    assert_eq!(text(&rule("a\nb\té\"\\")), r#"-m comment --comment "a?b??\"\\""#);
    let long = text(&rule(&"é".repeat(300)));
    assert_eq!(long, format!("-m comment --comment \"{}\"", "?".repeat(255)));
}

#[test]
fn a_name_cannot_end_its_word_or_its_line() {
    let rule = Rule { in_interface: Some(Not::Is("a b\n\"-j DROP".into())), ..Rule::default() };
    assert_eq!(text(&rule), r#"-i "a b?\"-j DROP""#);
}

#[test]
fn host_bits_and_whole_ranges_are_written_as_iptables_prints_them() {
    let rule = Rule {
        source: Some(Not::Is("10.1.2.3/8".parse().unwrap())),
        destination: Some(Not::Is("::/0".parse().unwrap())),
        ..Rule::default()
    };
    assert_eq!(text(&rule), "-s 10.0.0.0/8");
    let none = Rule { source: Some(Not::IsNot("0.0.0.0/0".parse().unwrap())), ..Rule::default() };
    assert_eq!(text(&none), "! -s 0.0.0.0/0");
}

#[test]
fn comments_do_not_change_what_a_chain_does() {
    let commented = |comment: Option<&str>| {
        [Rule {
            comment: comment.map(str::to_owned),
            protocol: Some(Protocol::Tcp),
            target: Some(Target::Accept),
            ..Rule::default()
        }]
    };
    assert_eq!(ChainBody::of(&commented(None)).digest, ChainBody::of(&commented(Some("x"))).digest);
    assert_ne!(ChainBody::of(&commented(None)).digest, ChainBody::of(&[Rule::default()]).digest);
}

#[test]
fn every_share_of_a_service_is_written_with_ten_decimals() {
    for n in (1..5_000).chain([46_340, 46_341, 100_001]) {
        let probability = Probability::one_in(n);
        let written = probability.to_string();
        assert_eq!(written.len(), 12, "{written}");
        assert_eq!(Probability::from_fraction(written.parse().unwrap()), probability, "one in {n}");
        // What the kernel's value looks like in iptables-save.
        let printed = format!("{:.11}", probability.fraction());
        assert_eq!(Probability::from_fraction(printed.parse().unwrap()), probability, "one in {n}");
    }
}

fn any_name() -> impl Strategy<Value = ChainName> {
    "[!-~]{0,24}[a-z]".prop_map(|name| ChainName::new(&format!("x{name}")).unwrap())
}

fn any_net() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 1..=128_u8).prop_map(|(address, prefix)| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, prefix.min(longest)).unwrap().trunc()
    })
}

fn any_sense<T: std::fmt::Debug + Clone>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Not<T>> {
    (value, any::<bool>()).prop_map(|(value, negated)| if negated { Not::IsNot(value) } else { Not::Is(value) })
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn any_states() -> impl Strategy<Value = ConntrackStates> {
    use ConntrackStates::{Invalid, New, RelatedEstablished, RelatedEstablishedDnat};
    prop::sample::select(vec![New, Invalid, RelatedEstablished, RelatedEstablishedDnat])
}

fn any_recent() -> impl Strategy<Value = Recent> {
    prop_oneof![
        any_name().prop_map(|list| Recent::Set { list }),
        (any_name(), any::<u32>()).prop_map(|(list, seconds)| Recent::Check { list, seconds }),
    ]
}

fn any_set_match() -> impl Strategy<Value = SetMatch> {
    let sides = prop::collection::vec(prop::sample::select(vec!["src", "dst"]), 1..=6);
    let family = prop::sample::select(IpFamily::ALL.to_vec());
    (family, prop::sample::select(SetName::ALL.to_vec()), sides).prop_map(|(family, name, sides)| SetMatch {
        set: SetKey { family, name },
        sides: Sides::parse(&sides.join(",")).unwrap(),
    })
}

fn any_virtual_server() -> impl Strategy<Value = VirtualKey> {
    (any::<IpAddr>(), any_protocol(), any::<u16>()).prop_map(|(address, protocol, port)| VirtualKey {
        address,
        protocol,
        port,
    })
}

fn any_target() -> impl Strategy<Value = Target> {
    prop_oneof![
        any_name().prop_map(Target::Jump),
        prop::sample::select(vec![Target::Accept, Target::Drop, Target::Return, Target::Reject]),
        any::<u32>().prop_map(Target::OrMark),
        any::<u32>().prop_map(Target::XorMark),
        any::<bool>().prop_map(|random_fully| Target::Masquerade { random_fully }),
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| Target::Dnat(SocketAddr::new(ip, port))),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let addresses = (of(any_sense(any_net())), of(any_sense(any_net())), of(any_sense("[ -~]{0,14}[a-z]")));
    let bits = of(any::<(u32, u32)>());
    let port = of((any_protocol(), of(any::<u16>())));
    let comment = (of("[ -~]{0,255}"), any::<bool>());
    let matches = (
        of(any_sense(any_states())),
        any::<(bool, bool)>(),
        of(any_sense(any::<(u32, u32)>())),
        of(any_recent()),
        of(0..=1_u32 << 31),
        of("[ -~]{0,31}"),
        of(any_sense(any_set_match())),
        of(any_virtual_server()),
    );
    let parts = (addresses, bits, port, comment, matches, of(any_target()));
    parts.prop_map(|(addresses, bits, port, comment, matches, target)| {
        let (states, local, mark, recent, probability, counter, set, virtual_server) = matches;
        let mut rule = Rule {
            source: addresses.0,
            destination: addresses.1,
            destination_bits: bits.filter(|_| addresses.1.is_none()).map(|(value, mask)| AddressBits {
                value: Ipv4Addr::from(value & mask).into(),
                mask: Ipv4Addr::from(mask).into(),
            }),
            in_interface: addresses.2.map(|name| name.map(Arc::from)),
            protocol: port.map(|(protocol, _)| protocol),
            destination_port: port.and_then(|(_, port)| port),
            comment: comment.0,
            comment_position: CommentPosition::First,
            conntrack_state: states,
            set,
            source_is_local: local.0,
            destination_is_local: local.1,
            virtual_server,
            mark: mark.map(|mark| mark.map(|(value, mask)| Mark { value, mask })),
            recent,
            probability: probability.map(Probability),
            counter: counter.map(Arc::from),
            target,
        };
        // Alone among the matches, a comment is first and last at once.
        if comment.1 && rule.comment.is_some() && bare(&rule).contains("-m ") {
            let matches = Rule {
                source: None,
                destination: None,
                destination_bits: None,
                in_interface: None,
                target: None,
                ..rule.clone()
            };
            if bare(&matches).contains("-m ") {
                rule.comment_position = CommentPosition::Last;
            }
        }
        rule
    })
}

proptest! {
    #[test]
    fn a_rule_survives_being_written_and_read(rule in any_rule()) {
        let written = text(&rule);
        prop_assert!(!written.contains('\n'));
        let read = Rule::parse_with_order(&written);
        prop_assert_eq!(read.map(|read| (read.rule, read.canonical)), Ok((rule, true)), "{}", written);
    }

    #[test]
    fn no_text_makes_the_parser_panic(spec in "\\PC*") {
        if let Ok(rule) = Rule::parse(&spec) {
            prop_assert_eq!(Rule::parse(&text(&rule)).map(|again| text(&again)), Ok(text(&rule)));
        }
    }

    #[test]
    fn no_sequence_of_options_makes_the_parser_panic(
        words in prop::collection::vec(prop::sample::select(vec![
            "!", "-s", "-d", "-i", "-p", "-m", "-j", "tcp", "udp", "1.1.1.1", "::/0", "recent", "--set", "--name", "A",
            "80", "comment", "--comment", "\"a b\"", "\"", "mark", "--mark", "0x1/0x1", "MARK", "--or-mark",
            "statistic", "--mode", "random", "--probability", "0.5", "addrtype", "--dst-type", "LOCAL", "DNAT",
            "--to-destination", "1.1.1.1:1", "conntrack", "--ctstate", "NEW", "--dport", "REJECT", "--reject-with", "icmp-port-unreachable",
            "--rcheck", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst", "ipvs", "--vaddr", "--vproto", "--vport",
        ]), 0..12)
    ) {
        let spec = words.join(" ");
        if let Ok(rule) = Rule::parse(&spec) {
            prop_assert_eq!(Rule::parse(&text(&rule)).map(|again| text(&again)), Ok(text(&rule)));
        }
    }
}
