use super::*;

fn key(table: Table, name: &str) -> ChainKey {
    ChainKey::new(IpFamily::V4, table, ChainName::new(name).unwrap())
}

/// A rule set from lines `table CHAIN rule`, each added at the end; `table CHAIN` alone makes an empty chain.
fn rules(lines: &[&str]) -> RuleSet {
    let mut set = RuleSet::default();
    for line in lines {
        let mut words = line.splitn(3, ' ');
        let table = if words.next() == Some("nat") { Table::Nat } else { Table::Filter };
        let chain = key(table, words.next().unwrap());
        match words.next() {
            Some(spec) => set.add_rule(&RuleKey { chain, spec: spec.into() }, Placement::Tail).unwrap(),
            None => set.add_empty(chain),
        }
    }
    set
}

fn packet() -> Packet {
    Packet {
        source: "198.51.100.7".parse().unwrap(),
        destination: "192.0.2.1:80".parse().unwrap(),
        protocol: Protocol::Tcp,
        in_interface: Some("eth0".into()),
    }
}

fn verdicts(lines: &[&str], packet: &Packet) -> Vec<(f64, Verdict, bool)> {
    let outcomes = rules(lines).trace(packet, |address| address == IpAddr::from([192, 168, 0, 2])).unwrap();
    outcomes.into_iter().map(|it| (it.probability, it.verdict, it.masqueraded)).collect()
}

fn endpoint(text: &str) -> Verdict {
    Verdict::Endpoint(text.parse().unwrap())
}

#[test]
fn a_packet_that_no_rule_speaks_of_is_not_handled() {
    assert_eq!(verdicts(&[], &packet()), [(1.0, Verdict::NotHandled, false)]);
}

#[test]
fn chance_splits_a_packet_and_marks_lead_to_masquerading() {
    let lines = [
        "nat PREROUTING -p tcp -m tcp --dport 80 -j S",
        "nat S -s 198.51.100.0/24 -j MARK --or-mark 0x004000",
        "nat S -m statistic --mode random --probability 0.2500000000 -j DNAT --to-destination 10.0.0.1:1",
        "nat S -p tcp -j DNAT --to-destination 10.0.0.2:2",
        "nat POSTROUTING -d 10.0.0.2/32 -m mark --mark 0x004000/0x004000 -j MASQUERADE",
    ];
    assert_eq!(
        verdicts(&lines, &packet()),
        [(0.25, endpoint("10.0.0.1:1"), false), (0.75, endpoint("10.0.0.2:2"), true)]
    );
}

#[test]
fn return_goes_on_behind_the_jump() {
    let lines = ["filter FORWARD -j F", "filter F -j RETURN", "filter F -j DROP", "filter FORWARD -j REJECT"];
    assert_eq!(verdicts(&lines, &packet()), [(1.0, Verdict::Reject, false)]);
}

#[test]
fn the_hooks_depend_on_where_a_packet_comes_from_and_goes_to() {
    let lines = ["filter INPUT -p tcp -j DROP", "filter FORWARD -p tcp -j REJECT", "filter OUTPUT -p udp -j DROP"];
    let verdict = |packet: Packet| verdicts(&lines, &packet)[0].1;
    let to = |destination: &str| Packet { destination: destination.parse().unwrap(), ..packet() };
    assert_eq!(verdict(packet()), Verdict::Reject, "forwarded");
    assert_eq!(verdict(to("192.168.0.2:80")), Verdict::Drop, "for this node");
    let sent = |packet: Packet| Packet { in_interface: None, ..packet };
    assert_eq!(verdict(sent(packet())), Verdict::NotHandled, "sent by this node");
    assert_eq!(verdict(sent(to("127.0.0.1:80"))), Verdict::Drop, "sent to itself, so that it comes in as well");
    assert_eq!(verdict(sent(Packet { protocol: Protocol::Udp, ..packet() })), Verdict::Drop);
}

#[test]
fn interfaces_match_by_name_or_beginning_and_a_sent_packet_has_none() {
    let verdict = |rule: &str, interface: Option<&str>| {
        let packet = Packet { in_interface: interface.map(Into::into), ..packet() };
        verdicts(&[&format!("nat PREROUTING {rule}"), &format!("nat OUTPUT {rule}")], &packet)[0].1
    };
    let to = "-j DNAT --to-destination 10.0.0.1:1";
    for (rule, interface, matches) in [
        ("-i eth0", Some("eth0"), true),
        ("-i eth", Some("eth0"), false),
        ("-i eth+", Some("eth0"), true),
        ("! -i eth+", Some("eth0"), false),
        ("-i eth0", None, false),
        ("! -i eth0", None, true),
    ] {
        let found = verdict(&format!("{rule} -p tcp {to}"), interface) == endpoint("10.0.0.1:1");
        assert_eq!(found, matches, "{rule} {interface:?}");
    }
}

#[test]
fn the_first_packet_is_new_and_after_translation_translated() {
    let dnat = "nat PREROUTING -p tcp -j DNAT --to-destination 10.0.0.1:1";
    for (states, translated, dropped) in [
        ("--ctstate NEW", false, true),
        ("--ctstate INVALID", false, false),
        ("--ctstate RELATED,ESTABLISHED", true, false),
        ("--ctstate RELATED,ESTABLISHED,DNAT", false, false),
        ("--ctstate RELATED,ESTABLISHED,DNAT", true, true),
    ] {
        let rule = format!("filter FORWARD -m conntrack {states} -j DROP");
        let lines = if translated { vec![dnat, &rule] } else { vec![&*rule] };
        assert_eq!(verdicts(&lines, &packet())[0].1 == Verdict::Drop, dropped, "{states} {translated}");
    }
}

#[test]
fn a_client_is_new_to_every_endpoint() {
    let lines = [
        "nat PREROUTING -p tcp -m recent --rcheck --seconds 60 --reap --name L -j DNAT --to-destination 10.0.0.1:1",
        "nat PREROUTING -p tcp -m recent --set --name L -j DNAT --to-destination 10.0.0.2:2",
    ];
    assert_eq!(verdicts(&lines, &packet())[0].1, endpoint("10.0.0.2:2"));
}

#[test]
fn the_path_names_every_rule_that_matched() {
    let set = rules(&["filter FORWARD -p udp -j DROP", "filter FORWARD -j F", "filter F -p tcp -j REJECT"]);
    let outcome = set.trace(&packet(), |_| false).unwrap().remove(0);
    let path: Vec<String> = outcome.path.iter().map(|(chain, spec)| format!("{} {spec}", chain.name)).collect();
    assert_eq!(path, ["FORWARD -j F", "F -p tcp -j REJECT"]);
}

#[test]
fn rules_that_no_kernel_takes_are_errors() {
    let error = |lines: &[&str]| rules(lines).trace(&packet(), |_| false).unwrap_err();
    let missing = key(Table::Nat, "GONE");
    assert_eq!(error(&["nat PREROUTING -j GONE"]), TraceError::NoChain(missing));
    assert!(matches!(error(&["nat PREROUTING -j A", "nat A -j B", "nat B -j A"]), TraceError::TooDeep(_)));
    let random = ["nat A -m statistic --mode random --probability 0.5000000000"; 20];
    let mut lines = vec!["nat PREROUTING -j A"];
    lines.extend(random);
    assert_eq!(error(&lines), TraceError::TooMany);
}

#[test]
fn rules_in_front_go_before_those_at_the_end() {
    let mut set = RuleSet::default();
    let chain = key(Table::Filter, "FORWARD");
    for (spec, placement) in [
        ("-p tcp -j ACCEPT", Placement::Tail),
        ("-p tcp -j DROP", Placement::Head),
        ("-p tcp -j REJECT", Placement::Head),
    ] {
        set.add_rule(&RuleKey { chain, spec: spec.into() }, placement).unwrap();
    }
    assert_eq!(set.trace(&packet(), |_| false).unwrap()[0].verdict, Verdict::Reject);
}
